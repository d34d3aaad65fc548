//! The named steps of a sandbox's life, at each of which a test can make the process that takes it die.
//!
//! With the feature `failpoints`, which no shipped binary has, the variable `FIRKIN_FAILPOINTS` names
//! a file. Whoever reaches the step whose name stands in that file kills itself, as `kill -9` does:
//! the gateway, the warden, or a worker of the warden. The file is read at every step, so that a test
//! arms and disarms a server that runs. Without the feature a step is nothing.
//!
//! The list is the one place of all names; `tests/sdk/python/test_failpoints.py` dies at each of
//! them, and `tests/failpoints.rs` holds the two, and the code, against each other.

/// A moment between two effects. Named after the effect that has just been there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    // --- the gateway: a boot, of a new sandbox, of a fork or from a kept disk
    /// The intent of a new sandbox is recorded.
    BootRecorded,
    /// Its machine exists.
    BootMade,
    /// Its guest has taken its Init.
    BootAttached,
    /// It is recorded as running; the same for a sandbox that is resumed.
    BootActive,
    /// It serves; whoever asked has no answer.
    BootShown,

    // --- the gateway: warm machines
    /// A machine for the pool exists; its guest has not answered.
    WarmMade,
    /// It is in the pool.
    WarmReady,
    /// A new sandbox has taken it.
    WarmTaken,

    // --- the gateway: what it asks of the warden
    /// To make a machine; no answer has come.
    CreateSent,
    /// To end one, or to give up its disk.
    StopSent,
    /// To freeze one.
    FreezeSent,
    /// To thaw one.
    ThawSent,
    /// To make an image.
    SealSent,

    // --- the gateway: a pause
    /// It is recorded as paused; the machine runs.
    PauseRecorded,
    /// Its streams are cut.
    PauseCut,
    /// Its guest is ready to be frozen.
    PauseAsked,
    /// The machine is frozen, or ended with its disk kept.
    PauseStopped,
    /// It is recorded that the machine is gone.
    PauseShelved,
    /// It rests; whoever asked has no answer.
    PauseShown,

    // --- the gateway: the way back
    /// A frozen machine is ended, because its disk alone is wanted.
    ResumeShelved,
    /// A frozen machine runs again.
    ResumeThawed,
    /// Its guest knows.
    ResumeAttached,

    // --- the gateway: images of sandboxes
    /// The guest is ready to be frozen.
    SealAsked,
    /// The machine is frozen.
    SealFrozen,
    /// Its disk is copied; the machine is frozen still.
    SealCopied,
    /// The machine runs again.
    SealThawed,
    /// The image exists, and nobody owns it.
    ImageMade,
    /// The image is recorded as a snapshot.
    SnapshotRecorded,
    /// The forks run; whoever asked has no answer.
    ForksMade,
    /// A snapshot's record is removed, its image is not.
    SnapshotRemoved,
    /// An image that nobody owned is removed.
    ImageCollected,

    // --- the gateway: an end
    /// Nobody finds the sandbox any more.
    EndHidden,
    /// Its end is recorded.
    EndRecorded,
    /// Its machine is gone.
    EndStopped,
    /// A disk that was kept is gone.
    EndDiscarded,
    /// Its record is gone; whoever asked may have no answer.
    EndForgotten,

    // --- the gateway: a start
    /// Every record is held against its machine; nothing is done about them.
    RecoverMatched,
    /// What belongs to nobody is ended.
    RecoverSwept,
    /// What is recorded has its drivers.
    RecoverTaken,

    // --- the warden: a machine's start
    /// One more pair of namespaces waits for a machine.
    SlotReady,
    /// The directory with its layers is there.
    MachineRoom,
    /// Its control groups are there.
    MachineGroups,
    /// Its socket listens.
    MachineSocket,
    /// The stager works.
    MachineLaunching,
    /// Its first process runs; no record says so.
    MachineLaunched,
    /// The record is there, beside that of the disk that had been kept.
    MachineNamed,
    /// It is recorded; the gateway has no answer.
    MachineRecorded,

    // --- the warden: freezing and thawing
    /// The kernel was asked.
    FreezeAsked,
    /// The kernel has done it; the gateway has no answer.
    FreezeSettled,

    // --- the warden: a machine's end
    /// Its processes are killed.
    StopKilled,
    /// None of them is left, and no control group.
    StopEmptied,
    /// Its socket is gone.
    StopClosed,
    /// Its directory is in the rubbish, or kept; the gateway has no answer.
    StopCleared,

    // --- the warden: a start
    /// What is dead is in the rubbish, what lives is known.
    SweepAdopted,
    /// Processes that belong to no machine are ended.
    SweepEnded,

    // --- the warden's workers
    /// An image is begun.
    DraftBegun,
    /// Its layers are copied.
    DraftCopied,
    /// It is described, and all of it on the disk.
    DraftSynced,
    /// It has its name.
    DraftNamed,
    /// A tall pile of snapshots is one image, beside the one that it shall replace.
    SquashMade,
    /// It has replaced it.
    SquashExchanged,
    /// An image that is removed has lost its name.
    ImageHidden,
    /// What ended machines left is about to be removed.
    RubbishBegun,
}

/// Says that a step is reached.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) fn reach(_: Step) {}

/// Says that a step is reached: when it is the one that a test waits for, this process ends here.
#[cfg(feature = "failpoints")]
pub(crate) fn reach(step: Step) {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    let Some(file) = std::env::var_os("FIRKIN_FAILPOINTS") else { return };
    let armed = std::fs::read_to_string(file).unwrap_or_default();
    if armed.trim() != format!("{step:?}") {
        return;
    }
    tracing::warn!("a process dies at {step:?}, as a test wants it");
    // Until the signal is there, nothing of what comes next may happen.
    while kill(Pid::this(), Signal::SIGKILL).is_ok() {
        std::thread::park();
    }
}
