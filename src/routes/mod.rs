//! The control plane: one axum router.
