//! What runs inside a machine: the envd API, its processes and files.

pub(crate) mod paths;
pub(crate) mod serve;
pub(crate) mod state;
pub(crate) mod users;
