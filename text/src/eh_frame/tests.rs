//! FDEs written by hand.
