//! What was decided and not yet taken by the reader.

use std::collections::VecDeque;

use crate::{Error, Event, NetnsId, Pattern, tracker::Watch};

/// Events that wait for a slow reader before the backend is left unread. The kernel's queue fills
/// then, and what is lost there is made good by reading the state again: memory does not grow.
const ENOUGH: usize = if cfg!(test) { 4 } else { 64 };

/// The events on their way to the reader, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    items: VecDeque<Item>,
    /// Nothing will come after what there is.
    ended: bool,
}

/// One thing on its way to the reader.
#[derive(Debug)]
pub(crate) enum Item {
    Event(Event),
    /// Whoever waits for this mark is to know that all before it was taken.
    Mark(u64),
    /// The last one.
    Error(Error),
}

impl Outbox {
    pub(crate) fn push(&mut self, item: Item) {
        if !self.ended {
            self.items.push_back(item);
        }
    }

    /// What is first.
    pub(crate) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front();
        if self.items.is_empty() {
            // What thousands of watches had to say at once needs no room for ever.
            self.items.shrink_to(ENOUGH);
        }
        item
    }

    /// Is there as much as a reader should be given at a time?
    pub(crate) fn is_full(&self) -> bool {
        self.items.len() >= ENOUGH
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Takes back what was said of a watch.
    pub(crate) fn forget(&mut self, watch: Watch) {
        self.items.retain(|item| match item {
            Item::Event(event) => {
                event.pattern.is_some()
                    || (event.netns, event.interface) != (watch.netns, watch.name)
            }
            Item::Mark(_) | Item::Error(_) => true,
        });
    }

    /// The same of a pattern.
    pub(crate) fn forget_pattern(&mut self, netns: NetnsId, pattern: &Pattern) {
        self.items.retain(|item| match item {
            Item::Event(event) => {
                let is_elsewhere = event.netns != netns && netns != NetnsId::ALL;
                is_elsewhere || event.pattern.as_ref() != Some(pattern)
            }
            Item::Mark(_) | Item::Error(_) => true,
        });
    }

    /// Takes back the marks that nobody waits for.
    pub(crate) fn keep_marks(&mut self, is_awaited: impl Fn(u64) -> bool) {
        self.items.retain(|item| match item {
            Item::Mark(mark) => is_awaited(*mark),
            Item::Event(_) | Item::Error(_) => true,
        });
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Nothing will come any more.
    pub(crate) fn end(&mut self, error: Error) {
        self.push(Item::Error(error));
        self.ended = true;
    }

    /// Nobody puts anything into it any more.
    pub(crate) fn close(&mut self) {
        self.ended = true;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }
}
