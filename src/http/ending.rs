//! The end of a right, while something lasts that was opened with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Wakes those who wait for the end of a right.
#[derive(Debug, Default)]
pub struct Ending {
    told: Notify,
    /// How much lasts.
    lasting: AtomicUsize,
}

/// What a right comes from.
pub trait Source: Send + Sync {
    /// Whether it has ended.
    fn is_over(&self) -> bool;

    /// What tells of its end. Made when something lasts so long that it has to be waited for.
    fn ending(&self) -> &Ending;

    /// Something lasts that long, from now on.
    fn lasts(self: Arc<Self>) {}
}

/// Is turned once, and wakes those who wait for it; what they wait by is made when somebody does.
#[derive(Debug, Default)]
pub struct Switch {
    over: AtomicBool,
    ending: OnceLock<Box<Ending>>,
}

impl Switch {
    /// Whether it was turned.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// What those wait by who wait for it.
    pub fn ending(&self) -> &Ending {
        self.ending.get_or_init(Box::default)
    }

    /// Whether anybody waits.
    pub fn is_waited_for(&self) -> bool {
        self.ending.get().is_some_and(|ending| ending.is_waited_for())
    }

    /// Turns it.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        // Whoever begins to wait now either is seen here, or sees the end there.
        std::sync::atomic::fence(Ordering::SeqCst);
        if let Some(ending) = self.ending.get() {
            ending.tell();
        }
    }
}

/// Something lasts, for as long as this does.
struct Lasting(Arc<dyn Source>);

impl Lasting {
    fn new(source: Arc<dyn Source>) -> Self {
        source.ending().lasting.fetch_add(1, Ordering::Relaxed);
        source.clone().lasts();
        Self(source)
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        self.0.ending().lasting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A right that ends when somebody ends it, and at a time at the latest.
#[derive(Clone)]
pub struct Right {
    source: Arc<dyn Source>,
    /// What else it comes from.
    other: Option<Arc<dyn Source>>,
    until: Instant,
}

/// What ends by itself.
#[derive(Default)]
struct Unending(Ending);

impl Source for Unending {
    fn is_over(&self) -> bool {
        false
    }

    fn ending(&self) -> &Ending {
        &self.0
    }
}

/// Waits for the end of a right.
pub type Over = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Ending {
    /// Whether anything lasts.
    pub fn is_waited_for(&self) -> bool {
        self.lasting.load(Ordering::Relaxed) > 0
    }

    /// Wakes those who wait. The source says that it is over already.
    pub fn tell(&self) {
        self.told.notify_waiters();
    }
}

impl Right {
    /// A right that ends with its source, and at `until`.
    pub fn new(source: Arc<dyn Source>, until: Instant) -> Self {
        Self { source, other: None, until }
    }

    /// A right that ends when somebody ends it.
    pub fn of(source: Arc<dyn Source>) -> Self {
        // Further off than any clock goes without a restart.
        Self::new(source, Instant::now() + Duration::from_secs(86_400 * 365))
    }

    /// A right that ends at that time, and that nobody ends before.
    pub fn until(until: Instant) -> Self {
        Self::new(Arc::new(Unending::default()), until)
    }

    /// The same right, which ends with another source too.
    #[must_use]
    pub fn and(self, other: Arc<dyn Source>) -> Self {
        Self { other: Some(other), ..self }
    }

    /// Whether it has ended by this time.
    pub fn is_over_at(&self, now: Instant) -> bool {
        self.is_over() || self.until <= now
    }

    /// Whether somebody has ended it.
    pub fn is_over(&self) -> bool {
        self.source.is_over() || self.other.as_ref().is_some_and(|other| other.is_over())
    }

    /// Returns when it has ended.
    pub fn over(&self) -> Over {
        let until = self.until;
        let source = Lasting::new(self.source.clone());
        let other = self.other.clone().map(Lasting::new);
        Box::pin(async move {
            let other = async {
                match &other {
                    Some(other) => other.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = source.ended() => {}
                () = other => {}
                () = tokio::time::sleep_until(until) => {}
            }
        })
    }
}

impl Lasting {
    async fn ended(&self) {
        let Self(source) = self;
        loop {
            let told = source.ending().told.notified();
            // Asked for before it is looked whether it is over, so that no end is missed.
            let mut told = std::pin::pin!(told);
            told.as_mut().enable();
            std::sync::atomic::fence(Ordering::SeqCst);
            if source.is_over() {
                return;
            }
            told.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Held(AtomicBool, Ending);

    impl Source for Held {
        fn is_over(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }

        fn ending(&self) -> &Ending {
            &self.1
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_heard_before_during_and_after_the_wait_and_time_is_one() {
        let held = Arc::new(Held::default());
        let right = Right::new(held.clone(), Instant::now() + Duration::from_secs(100));
        let waits = tokio::spawn(right.over());
        tokio::task::yield_now().await;
        assert!(!waits.is_finished() && !right.is_over());
        held.0.store(true, Ordering::Release);
        held.1.tell();
        waits.await.unwrap();
        right.over().await;
        let right = Right::new(Arc::new(Held::default()), Instant::now() + Duration::from_secs(5));
        let began = Instant::now();
        right.over().await;
        assert_eq!(began.elapsed().as_secs(), 5);
        // Of two sources each ends it.
        for ends in [0, 1] {
            let two = [Arc::new(Held::default()), Arc::new(Held::default())];
            let right = Right::new(two[0].clone(), Instant::now() + Duration::from_secs(100));
            let right = right.and(two[1].clone());
            let waits = tokio::spawn(right.over());
            tokio::task::yield_now().await;
            assert!(!waits.is_finished() && !right.is_over_at(Instant::now()));
            two[ends].0.store(true, Ordering::Release);
            two[ends].1.tell();
            waits.await.unwrap();
            assert!(right.is_over());
        }
    }
}
