//! What systemd is told (`sd_notify`(3)), where it started this process.

use std::time::Duration;

use sd_notify::NotifyState;

/// The process serves.
pub(super) fn ready(what: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(what)]);
}

/// It stops.
pub(super) fn stopping(what: &str) {
    say(&[NotifyState::Stopping, NotifyState::Status(what)]);
}

/// It reads its configuration again; [`ready`] says that it has.
pub(super) fn reloading() {
    let states = NotifyState::monotonic_usec_now().map(|now| [NotifyState::Reloading, now]);
    match states {
        Ok(states) => say(&states),
        Err(error) => tracing::debug!(%error, "systemd was not told"),
    }
}

/// Tells it regularly that the control plane lives, when it wants to hear that (`WatchdogSec=`).
pub(super) async fn live() {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let pause = (patience / 2).max(Duration::from_millis(10));
    loop {
        say(&[NotifyState::Watchdog]);
        tokio::time::sleep(pause).await;
    }
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
