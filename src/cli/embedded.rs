//! The binaries that the build put into this one.

static GUEST: &[u8] = include_bytes!(env!("FIRKIN_GUEST_BIN"));
static SUDO: &[u8] = include_bytes!(env!("FIRKIN_SUDO_BIN"));

/// The guest of this architecture; none in a build that was made without it.
pub(super) fn guest() -> Option<&'static [u8]> {
    (!GUEST.is_empty()).then_some(GUEST)
}

/// The `sudo` of the supplement layer.
pub(super) fn sudo() -> &'static [u8] {
    SUDO
}
