//! Code that jumps on and that nothing returns into: stubs of static calls, chains of dispatchers.
//!
//! Key type: [`Leaf`]. Neighbour: `life`, which frees it when no thread stands in it.

use std::sync::Arc;

use text::RxRange;

use crate::domain::Trampolines;
use crate::indirect::Placed;

/// One piece. Whoever drops it has made sure that no call begins in it any more.
#[derive(Debug)]
pub(crate) struct Leaf {
    placed: Option<Placed>,
    /// A thread that is about to come here may still be there, with the way in its registers.
    way_in: Option<RxRange>,
    retires_to: Arc<Trampolines>,
}

impl Leaf {
    pub(crate) fn new(placed: Placed, retires_to: &Arc<Trampolines>) -> Self {
        Leaf {
            placed: Some(placed),
            way_in: None,
            retires_to: retires_to.clone(),
        }
    }

    pub(crate) fn calls_come_from(&mut self, way_in: RxRange) {
        self.way_in = Some(way_in);
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if let Some(placed) = self.placed.take() {
            self.retires_to.retire(placed, self.way_in);
        }
    }
}
