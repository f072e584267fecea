//! One answer to one question, from the thread that was asked to the one that waits.
//!
//! It knows nothing of who they are. To wait is to sleep at once, without looking a few times before as a channel does: whether
//! that is worth it depends on how soon the answer comes, and who knows that looks by [`Answer::get`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, wait_for};

/// What whoever is asked has: to be given an answer, once. Gone without one, it tells that.
pub(crate) struct Reply<R>(Arc<Slot<R>>);

/// What whoever asked has.
pub(crate) struct Answer<R>(Arc<Slot<R>>);

struct Slot<R> {
    state: Mutex<State<R>>,
    /// The state is no longer `Awaited`.
    is_decided: AtomicBool,
    decided: Condvar,
}

enum State<R> {
    Awaited,
    Given(R),
    Gone,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    NotYet,
    /// And there will be none.
    Gone,
}

pub(crate) fn question<R>() -> (Reply<R>, Answer<R>) {
    let state = Mutex::new(State::Awaited);
    let slot = Arc::new(Slot { state, is_decided: AtomicBool::new(false), decided: Condvar::new() });
    (Reply(slot.clone()), Answer(slot))
}

impl<R> Slot<R> {
    fn decide(&self, state: State<R>) {
        *self.state.lock() = state;
        self.is_decided.store(true, Ordering::Release);
        self.decided.notify_one();
    }
}

impl<R> Reply<R> {
    /// Whoever asked may have stopped waiting: then it goes nowhere.
    pub(crate) fn give(self, answer: R) {
        self.0.decide(State::Given(answer));
    }
}

impl<R> Drop for Reply<R> {
    fn drop(&mut self) {
        if !self.0.is_decided.load(Ordering::Relaxed) {
            self.0.decide(State::Gone);
        }
    }
}

impl<R> Answer<R> {
    /// The answer, if it is there.
    pub(crate) fn get(&self) -> Result<R, Unanswered> {
        if self.0.is_decided.load(Ordering::Acquire) { take(&mut self.0.state.lock()) } else { Err(Unanswered::NotYet) }
    }

    /// Waits for the answer for so long.
    pub(crate) fn wait(&self, limit: Duration) -> Result<R, Unanswered> {
        let until = Instant::now() + limit;
        let mut state = self.0.state.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match take(&mut state) {
                Err(Unanswered::NotYet) if !left.is_zero() => (state, _) = wait_for(&self.0.decided, state, left),
                answer => return answer,
            }
        }
    }
}

fn take<R>(state: &mut State<R>) -> Result<R, Unanswered> {
    match std::mem::replace(state, State::Gone) {
        State::Given(answer) => Ok(answer),
        State::Gone => Err(Unanswered::Gone),
        State::Awaited => {
            *state = State::Awaited;
            Err(Unanswered::NotYet)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_once() {
        let (reply, answer) = question();
        assert_eq!(answer.get(), Err(Unanswered::NotYet));
        assert_eq!(answer.wait(Duration::from_millis(1)), Err(Unanswered::NotYet));
        reply.give(7);
        assert_eq!((answer.get(), answer.get()), (Ok(7), Err(Unanswered::Gone)));
    }

    #[test]
    fn whoever_waits_is_woken_by_an_answer_or_by_its_loss() {
        const LONG: Duration = Duration::from_secs(600);
        let (reply, answer) = question();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| answer.wait(LONG));
            reply.give("done");
            assert_eq!(waiting.join().unwrap(), Ok("done"));
        });
        let (reply, answer) = question::<()>();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| answer.wait(LONG));
            drop(reply);
            assert_eq!(waiting.join().unwrap(), Err(Unanswered::Gone));
        });
    }

    #[test]
    fn nobody_minds_an_answer_that_nobody_waits_for() {
        let (reply, answer) = question();
        drop(answer);
        reply.give(1);
    }
}
