//! Cached blocks that nobody holds, in the order in which they became so.

/// A list through blocks `0..total`; each operation takes constant time and no memory.
#[derive(Debug)]
pub(super) struct IdleList {
    oldest: Option<u32>,
    newest: Option<u32>,
    links: Vec<Link>,
    count: usize,
}

/// A block's neighbours; meaningless while it is not in the list.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    older: Option<u32>,
    newer: Option<u32>,
}

impl IdleList {
    pub(super) fn new(total: u32) -> Self {
        Self {
            oldest: None,
            newest: None,
            links: vec![Link::default(); total as usize],
            count: 0,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Adds a block that is not in the list, as the newest.
    pub(super) fn push(&mut self, block: u32) {
        let older = self.newest.replace(block);
        self.links[block as usize] = Link { older, newer: None };
        match older {
            Some(older) => self.links[older as usize].newer = Some(block),
            None => self.oldest = Some(block),
        }
        self.count += 1;
    }

    /// Takes out a block that is in the list.
    pub(super) fn remove(&mut self, block: u32) {
        let Link { older, newer } = self.links[block as usize];
        match older {
            Some(older) => self.links[older as usize].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.links[newer as usize].older = older,
            None => self.newest = older,
        }
        self.count -= 1;
    }

    pub(super) fn pop_oldest(&mut self) -> Option<u32> {
        let oldest = self.oldest?;
        self.remove(oldest);
        Some(oldest)
    }

    pub(super) fn oldest_first(&self) -> Vec<u32> {
        let next = |block: &u32| self.links[*block as usize].newer;
        std::iter::successors(self.oldest, next).collect()
    }
}
