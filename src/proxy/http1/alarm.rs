//! A timer that is set once and kept, because most of what it is set for happens long before it rings.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// Rings at a moment. Setting a timer and taking it back for every request costs more than to be woken for
/// nothing now and then: this one rings for an earlier moment, looks, and is set again.
#[derive(Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready when the moment has come.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, moment: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(moment)));
        if sleep.deadline() > moment {
            sleep.as_mut().reset(moment);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= moment {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(moment);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_for_each_moment_in_turn_whichever_comes_first() {
        let (mut alarm, began) = (Alarm::default(), Instant::now());
        for after in [5, 30, 31, 100, 40, 101] {
            let moment = began + Duration::from_secs(after);
            let late = moment.max(Instant::now());
            poll_fn(|cx| alarm.poll(cx, moment)).await;
            assert_eq!(Instant::now().duration_since(late).as_secs(), 0, "{after}");
            assert!(Instant::now() >= moment);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_ring_for_a_moment_that_was_given_up() {
        let (mut alarm, began) = (Alarm::default(), Instant::now());
        let first = poll_fn(|cx| alarm.poll(cx, began + Duration::from_secs(5)));
        assert!(tokio::time::timeout(Duration::from_secs(1), first).await.is_err());
        poll_fn(|cx| alarm.poll(cx, began + Duration::from_secs(20))).await;
        assert_eq!(began.elapsed().as_secs(), 20);
    }
}
