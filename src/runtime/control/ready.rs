//! The control stream of a warm machine: its guest answers, and knows nobody yet.

use std::{fmt, sync::Arc};

use super::{Attendant, Control, ControlError, Ears, Identity, Session};
use crate::{
    runtime::{link::GuestLink, logs::LogRing, world::World},
    wire::control::ToGuest,
};

/// An open stream to a guest that was introduced to nobody.
pub(in crate::runtime) struct Ready {
    session: Session,
    link: Arc<dyn GuestLink>,
    ears: Ears,
}

// === impl Ready ===

impl Ready {
    /// Returns when the guest has answered. The caller bounds the time.
    pub(in crate::runtime) async fn open(
        link: Arc<dyn GuestLink>,
        world: &World,
        logs: Arc<LogRing>,
    ) -> Result<Self, ControlError> {
        let (stream, _generation) = link.open_control(world.nonce()).await?;
        let mut session = Session::new(stream);
        let seq = session.say(|seq| ToGuest::Ping { seq }).await?;
        let ears = Ears::new(logs);
        session.done(seq, &ears).await?;
        Ok(Self { session, link, ears })
    }

    /// Tells the guest who it is, on the same stream. The caller bounds the time.
    pub(in crate::runtime) async fn introduce(mut self, identity: Identity) -> Result<Control, ControlError> {
        let attendant = Attendant { link: self.link, identity, ears: self.ears };
        attendant.introduce(&mut self.session).await?;
        Ok(Control::start(attendant, Some(self.session)))
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ready").field("link", &self.link).finish_non_exhaustive()
    }
}
