//! The only place where engines, store, clock and registry meet.
