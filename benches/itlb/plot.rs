//! Plots: a panel for each order of calls, a curve for each layout, both axes logarithmic.
//!
//! Curves differ by colour, by dashes and by markers, so that they can be told apart without
//! colour. What is zero, or less than an axis shows, stands on a line of its own below the axis's
//! end, which is marked 0.
//!
//! Key function: [`draw`]. Neighbour: `plotters` knows SVG and axes.

use plotters::coord::Shift;
use plotters::coord::combinators::LogCoord;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::order::Order;
use super::place::Layout;
use super::results::{Point, Results};

/// Why there is no plot.
pub(crate) type PlotError = DrawingAreaErrorKind<std::io::Error>;

type Svg<'a> = SVGBackend<'a>;
type Area<'a> = DrawingArea<Svg<'a>, Shift>;
type Log = LogCoord<f64>;
type Chart<'a, 'b> = ChartContext<'a, Svg<'b>, Cartesian2d<Log, Log>>;

/// The least width, and the height, of a panel with its axes; the first has room for numbers too.
const PANEL: (u32, u32) = (325, 330);
const NUMBERS_WIDTH: u32 = 56;
const TITLE_HEIGHT: u32 = 34;
const LEGEND: (u32, u32) = (1010, 34);
const FONT: &str = "sans-serif";
/// The smallest value that an axis shows.
const FLOOR: f64 = 1e-4;

/// How a layout's curve looks. Colours are Okabe's and Ito's, which differ for all eyes.
struct Style {
    colour: RGBColor,
    /// Length of a dash and of the space after it, in pixels; none: a line.
    dashes: Option<(u32, u32)>,
    marker: Marker,
}

#[derive(Copy, Clone)]
enum Marker {
    Circle,
    Square,
    Triangle,
    Cross,
}

fn style(layout: Layout) -> Style {
    let (colour, dashes, marker) = match layout {
        Layout::Page => (RGBColor(0xd5, 0x5e, 0x00), None, Marker::Circle),
        Layout::Packed => (RGBColor(0x00, 0x72, 0xb2), Some((9, 5)), Marker::Square),
        Layout::Hot => (RGBColor(0x00, 0x9e, 0x73), Some((2, 3)), Marker::Triangle),
        Layout::Huge => (RGBColor(0, 0, 0), Some((14, 3)), Marker::Cross),
    };
    Style {
        colour,
        dashes,
        marker,
    }
}

/// The plot of a metric, as a file.
///
/// # Errors
/// [`PlotError`], if `plotters` cannot draw it.
pub(crate) fn draw(
    results: &Results,
    metric: usize,
    orders: &[Order],
    layouts: &[Layout],
) -> Result<String, PlotError> {
    let mut svg = String::new();
    let nr_panels = orders.len().max(1) as u32;
    // The legend wants room, however few panels there are.
    let panel_width = PANEL.0.max((LEGEND.0 - NUMBERS_WIDTH) / nr_panels);
    let width = NUMBERS_WIDTH + nr_panels * panel_width;
    let size = (width, TITLE_HEIGHT + PANEL.1 + LEGEND.1);
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let about = results.metrics[metric].about.as_str();
        let title = (FONT, 17).into_text_style(&root);
        root.draw(&Text::new(about, (14, 10), title))?;
        let (_, rest) = root.split_vertically(TITLE_HEIGHT);
        let (panels, below) = rest.split_vertically(PANEL.1);
        let mut left = panels;
        for (index, &order) in orders.iter().enumerate() {
            let numbers = if index == 0 {
                Numbers::Shown
            } else {
                Numbers::Left
            };
            let (area, rest) = left.split_horizontally(panel_width + numbers.width());
            panel(&area, results, metric, order, layouts, numbers)?;
            left = rest;
        }
        legend(&below, layouts)?;
        root.present()?;
    }
    Ok(svg)
}

/// Whether a panel has numbers on its vertical axis.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Numbers {
    Shown,
    Left,
}

impl Numbers {
    fn width(self) -> u32 {
        match self {
            Self::Shown => NUMBERS_WIDTH,
            Self::Left => 0,
        }
    }
}

fn panel(
    area: &Area,
    results: &Results,
    metric: usize,
    order: Order,
    layouts: &[Layout],
    numbers: Numbers,
) -> Result<(), PlotError> {
    let axis = Axis::of(results, metric);
    let most = results.points.iter().map(|point| point.programs);
    let most = most.max().unwrap_or_default().max(2) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin_right(12)
        .margin_left(6)
        .x_label_area_size(44)
        .y_label_area_size(numbers.width())
        .caption(format!("{order} order"), (FONT, 14))
        .build_cartesian_2d(
            (0.8..most * 1.25).log_scale().base(2.0),
            (axis.bottom..axis.top).log_scale().base(10.0),
        )?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("programs")
        .x_labels(8)
        .y_labels(6)
        .x_label_formatter(&|nr| match *nr >= 1024.0 {
            true => format!("{}k", nr / 1024.0),
            false => format!("{nr}"),
        })
        .y_label_formatter(&|value| format!("{}", (value * 1e6).round() / 1e6))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.15))
        .label_style((FONT, 12));
    if numbers == Numbers::Shown {
        mesh.y_desc(results.metrics[metric].unit);
    }
    mesh.draw()?;
    if let (Some(zero), Numbers::Shown) = (axis.zero, numbers) {
        let (x, y) = chart.backend_coord(&(0.8, zero));
        let at_end = Pos::new(HPos::Right, VPos::Center);
        let text = (FONT, 12).into_text_style(area).pos(at_end);
        // Labels lie left of the axis; places of an area count from its own corner.
        let corner = area.get_base_pixel();
        area.draw(&Text::new("0", (x - corner.0 - 8, y - corner.1), text))?;
    }
    for &layout in layouts {
        let is_it = |point: &&Point| (point.order, point.layout) == (order, layout);
        let points = results.points.iter().filter(is_it).filter_map(|point| {
            let value = point.values.get(metric)?.median;
            Some((point.programs as f64, axis.place(value)))
        });
        curve(&mut chart, points.collect(), &style(layout))?;
    }
    Ok(())
}

/// What a vertical axis shows.
#[derive(Copy, Clone, Debug)]
struct Axis {
    bottom: f64,
    top: f64,
    /// Where zeros stand, if there are some.
    zero: Option<f64>,
}

impl Axis {
    /// Whole decades around all values of a metric; below them, room for zeros.
    fn of(results: &Results, metric: usize) -> Self {
        let values = results.points.iter().filter_map(|p| p.values.get(metric));
        let (zeros, values): (Vec<f64>, Vec<f64>) = values
            .map(|value| value.median)
            .partition(|&value| value < FLOOR);
        let most = values.iter().copied().fold(FLOOR, f64::max);
        let least = values.iter().copied().fold(most, f64::min);
        let low = 10_f64.powf(least.log10().floor());
        let top = 10_f64.powf(most.log10().ceil()).max(low * 10.0) * 1.1;
        let (bottom, zero) = match zeros.is_empty() {
            true => (low * 0.9, None),
            false => (low * 0.3, Some(low * 0.4)),
        };
        Self { bottom, top, zero }
    }

    fn place(self, value: f64) -> f64 {
        match self.zero {
            Some(zero) if value < FLOOR => zero,
            _ => value,
        }
    }
}

fn curve(chart: &mut Chart, points: Vec<(f64, f64)>, style: &Style) -> Result<(), PlotError> {
    let stroke = style.colour.stroke_width(2);
    match style.dashes {
        None => chart.draw_series(LineSeries::new(points.iter().copied(), stroke))?,
        Some((dash, space)) => {
            let points = points.iter().copied();
            chart.draw_series(DashedLineSeries::new(points, dash, space, stroke))?
        }
    };
    let spots = points.iter().map(|&at| EmptyElement::at(at));
    match style.marker {
        Marker::Circle => chart.draw_series(spots.map(|spot| spot + circle(stroke)))?,
        Marker::Square => chart.draw_series(spots.map(|spot| spot + square(stroke)))?,
        Marker::Triangle => chart.draw_series(spots.map(|spot| spot + triangle(stroke)))?,
        Marker::Cross => chart.draw_series(spots.map(|spot| spot + cross(stroke)))?,
    };
    Ok(())
}

type Pixel = (i32, i32);

fn circle(stroke: ShapeStyle) -> Circle<Pixel, i32> {
    Circle::new((0, 0), 4, stroke)
}

fn square(stroke: ShapeStyle) -> PathElement<Pixel> {
    PathElement::new([(-4, -4), (4, -4), (4, 4), (-4, 4), (-4, -4)], stroke)
}

fn triangle(stroke: ShapeStyle) -> PathElement<Pixel> {
    PathElement::new([(0, -5), (5, 4), (-5, 4), (0, -5)], stroke)
}

fn cross(stroke: ShapeStyle) -> Cross<Pixel, i32> {
    Cross::new((0, 0), 4, stroke)
}

/// For all panels: a piece of each curve, and what it is.
fn legend(area: &Area, layouts: &[Layout]) -> Result<(), PlotError> {
    const PIECE: i32 = 48;
    let (mut x, y) = (NUMBERS_WIDTH as i32, 14);
    for &layout in layouts {
        let (style, about) = (style(layout), layout.about());
        let stroke = style.colour.stroke_width(2);
        let (from, to) = ((x, y), (x + PIECE, y));
        match style.dashes {
            None => area.draw(&PathElement::new([from, to], stroke))?,
            Some((dash, space)) => {
                let dashes = DashedLineSeries::new([from, to], dash, space, stroke);
                for dash in dashes {
                    area.draw(&dash)?;
                }
            }
        }
        let spot = EmptyElement::at((x + PIECE / 2, y));
        match style.marker {
            Marker::Circle => area.draw(&(spot + circle(stroke)))?,
            Marker::Square => area.draw(&(spot + square(stroke)))?,
            Marker::Triangle => area.draw(&(spot + triangle(stroke)))?,
            Marker::Cross => area.draw(&(spot + cross(stroke)))?,
        }
        let text = (FONT, 13).into_text_style(area);
        let text = text.pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(about, (x + PIECE + 8, y), text))?;
        x += PIECE + 30 + 13 * about.len() as i32 / 2;
    }
    Ok(())
}
