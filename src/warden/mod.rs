//! The root helper: the only process that mounts, clones and writes cgroups.
