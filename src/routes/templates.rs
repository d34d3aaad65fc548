//! Templates as the control plane shows them (contract/control-plane 4).

pub(crate) mod alias;
pub(crate) mod change;
pub(crate) mod delete;
pub(crate) mod details;
pub(crate) mod list;
pub(crate) mod reference;
pub(crate) mod tags;
