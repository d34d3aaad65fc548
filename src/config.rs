//! Configuration: one small struct a concern; flags > environment > file > defaults.
