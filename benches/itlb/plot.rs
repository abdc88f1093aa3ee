//! Plots: a panel for each order of calls, a curve for each layout, both axes logarithmic.
//!
//! Curves differ by colour, by dashes and by markers, so that they can be told apart without colour.
//! What is zero, or less than the axis shows, stands on a line of its own below the axis's end,
//! which is marked 0.
//!
//! Key function: [`draw`]. Source: SVG 1.1.

use std::fmt::Write;

use super::order::Order;
use super::place::Layout;
use super::results::Results;

const PANEL: (f64, f64) = (300.0, 260.0);
/// Left of the first panel, between panels, above, below.
const LEFT: f64 = 70.0;
const GAP: f64 = 24.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 92.0;
/// Below the axis's end, where zeros are.
const ZERO: f64 = 22.0;
/// The smallest value that an axis of misses shows.
const FLOOR: f64 = 1e-4;

/// How a layout's curve looks.
struct Style {
    colour: &'static str,
    dashes: &'static str,
    marker: Marker,
}

#[derive(Copy, Clone)]
enum Marker {
    Circle,
    Square,
    Triangle,
    Cross,
}

/// Colours of Okabe and Ito, which differ for all eyes.
fn style(layout: Layout) -> Style {
    let (colour, dashes, marker) = match layout {
        Layout::Page => ("#d55e00", "none", Marker::Circle),
        Layout::Packed => ("#0072b2", "8 4", Marker::Square),
        Layout::Hot => ("#009e73", "2 3", Marker::Triangle),
        Layout::Huge => ("#000000", "10 3 2 3", Marker::Cross),
    };
    Style {
        colour,
        dashes,
        marker,
    }
}

/// The plot of a metric, as a file.
pub(crate) fn draw(
    results: &Results,
    metric: usize,
    orders: &[Order],
    layouts: &[Layout],
) -> String {
    let about = &results.metrics[metric].about;
    let values = results.points.iter().filter_map(|p| p.values.get(metric));
    let axis = Axis::of(values.map(|value| value.median));
    let nrs = results.points.iter().map(|point| point.programs as f64);
    let width = LEFT + orders.len() as f64 * (PANEL.0 + GAP);
    let height = TOP + PANEL.1 + BOTTOM;
    let mut figure = Figure {
        out: String::new(),
        axis,
        most: nrs.fold(2.0, f64::max),
    };
    let _ = writeln!(
        figure.out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>"
    );
    figure.text((LEFT, 22.0), Anchor::Start, 15, about);
    for (index, &order) in orders.iter().enumerate() {
        let left = LEFT + index as f64 * (PANEL.0 + GAP);
        let first = index == 0;
        figure.frame(
            left,
            order,
            if first { Ticks::Labelled } else { Ticks::Bare },
        );
        for &layout in layouts {
            let of = |p: &&super::results::Point| (p.order, p.layout) == (order, layout);
            let points = results.points.iter().filter(of);
            let points = points.filter_map(|point| {
                let value = point.values.get(metric)?;
                Some((point.programs as f64, value.median))
            });
            figure.curve(left, &points.collect::<Vec<_>>(), &style(layout));
        }
    }
    let middle = TOP + PANEL.1 / 2.0;
    let unit = results.metrics[metric].unit;
    let _ = writeln!(
        figure.out,
        "<text x=\"16\" y=\"{middle}\" text-anchor=\"middle\" \
         transform=\"rotate(-90 16 {middle})\">{unit}</text>"
    );
    figure.legend(layouts);
    figure.out + "</svg>\n"
}

/// The vertical axis, from `low` to `high`, both powers of ten.
#[derive(Copy, Clone, Debug)]
struct Axis {
    low: i32,
    high: i32,
    has_zeros: bool,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (f64::MAX, FLOOR);
        let mut has_zeros = false;
        for value in values {
            if value < FLOOR {
                has_zeros = true;
            } else {
                least = least.min(value);
                most = most.max(value);
            }
        }
        let low = least.min(most).log10().floor() as i32;
        let high = (most.log10().ceil() as i32).max(low + 1);
        Self {
            low,
            high,
            has_zeros,
        }
    }

    fn y(self, value: f64) -> f64 {
        let bottom = TOP + PANEL.1;
        if value < FLOOR {
            return bottom;
        }
        let room = PANEL.1 - if self.has_zeros { ZERO } else { 0.0 };
        let part = (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        TOP + room * (1.0 - part)
    }
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum Ticks {
    Labelled,
    Bare,
}

#[derive(Copy, Clone)]
enum Anchor {
    Start,
    Middle,
    End,
}

struct Figure {
    out: String,
    axis: Axis,
    /// The most programs.
    most: f64,
}

impl Figure {
    fn x(&self, left: f64, programs: f64) -> f64 {
        // Room for markers on both sides.
        left + 10.0 + (PANEL.0 - 20.0) * programs.log2() / self.most.log2()
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, size: u32, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{text}</text>"
        );
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
        let _ = writeln!(
            self.out,
            "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"{colour}\" fill=\"none\"/>"
        );
    }

    /// A panel's frame, grid and ticks.
    fn frame(&mut self, left: f64, order: Order, ticks: Ticks) {
        let (right, bottom) = (left + PANEL.0, TOP + PANEL.1);
        for power in self.axis.low..=self.axis.high {
            let y = self.axis.y(10_f64.powi(power));
            self.line((left, y), (right, y), "#dddddd");
            if ticks == Ticks::Labelled {
                let label = match power {
                    -4..0 => format!("{:.*}", power.unsigned_abs() as usize, 10_f64.powi(power)),
                    _ => format!("{}", 10_f64.powi(power)),
                };
                self.text((left - 6.0, y + 4.0), Anchor::End, 12, &label);
            }
        }
        if self.axis.has_zeros && ticks == Ticks::Labelled {
            self.text((left - 6.0, bottom + 4.0), Anchor::End, 12, "0");
        }
        for log in (0..=self.most.log2() as u32).step_by(2) {
            let programs = f64::from(1_u32 << log);
            let x = self.x(left, programs);
            self.line((x, TOP), (x, bottom), "#eeeeee");
            self.line((x, bottom), (x, bottom + 4.0), "#000000");
            let label = match log {
                10.. => format!("{}k", 1 << (log - 10)),
                _ => format!("{}", 1 << log),
            };
            self.text((x, bottom + 17.0), Anchor::Middle, 12, &label);
        }
        let (width, height) = PANEL;
        let _ = writeln!(
            self.out,
            "<rect x=\"{left}\" y=\"{TOP}\" width=\"{width}\" height=\"{height}\" \
             stroke=\"#000000\" fill=\"none\"/>"
        );
        let middle = left + width / 2.0;
        let title = format!("{order} order");
        self.text((middle, TOP - 8.0), Anchor::Middle, 13, &title);
        self.text((middle, bottom + 36.0), Anchor::Middle, 12, "programs");
    }

    fn curve(&mut self, left: f64, points: &[(f64, f64)], style: &Style) {
        let at = |&(programs, value): &(f64, f64)| (self.x(left, programs), self.axis.y(value));
        let spots: Vec<(f64, f64)> = points.iter().map(at).collect();
        self.path(&spots, style);
        for &spot in &spots {
            self.marker(spot, style);
        }
    }

    fn path(&mut self, spots: &[(f64, f64)], style: &Style) {
        let mut path = String::new();
        for (index, (x, y)) in spots.iter().enumerate() {
            let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
        }
        let (colour, dashes) = (style.colour, style.dashes);
        let _ = writeln!(
            self.out,
            "<path d=\"{path}\" stroke=\"{colour}\" stroke-width=\"1.8\" \
             stroke-dasharray=\"{dashes}\" fill=\"none\"/>"
        );
    }

    fn marker(&mut self, (x, y): (f64, f64), style: &Style) {
        let shape = match style.marker {
            Marker::Circle => format!("M{:.1} {y:.1}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", x - 4.0),
            Marker::Square => format!("M{:.1} {:.1}h7v7h-7z", x - 3.5, y - 3.5),
            Marker::Triangle => format!("M{x:.1} {:.1}l4.5 8h-9z", y - 5.0),
            Marker::Cross => format!("M{:.1} {:.1}l8 8m0 -8l-8 8", x - 4.0, y - 4.0),
        };
        let _ = writeln!(
            self.out,
            "<path d=\"{shape}\" stroke=\"{}\" stroke-width=\"1.5\" fill=\"white\" fill-opacity=\"0.6\"/>",
            style.colour
        );
    }

    fn legend(&mut self, layouts: &[Layout]) {
        let y = TOP + PANEL.1 + 66.0;
        let mut x = LEFT;
        for &layout in layouts {
            let style = style(layout);
            self.path(&[(x, y), (x + 46.0, y)], &style);
            self.marker((x + 23.0, y), &style);
            let about = layout.about();
            self.text((x + 53.0, y + 4.0), Anchor::Start, 12, about);
            x += 53.0 + 6.4 * about.len() as f64 + 20.0;
        }
    }
}
