//! What nobody holds, in the order in which it became so.

/// A list through members `0..total`; each operation takes constant time and no memory.
#[derive(Debug, Default)]
pub(super) struct IdleList {
    oldest: Option<u32>,
    newest: Option<u32>,
    links: Vec<Link>,
}

/// A member's neighbours; meaningless while it is not in the list.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    older: Option<u32>,
    newer: Option<u32>,
}

impl IdleList {
    /// Makes room for members `0..total`.
    pub(super) fn grow(&mut self, total: usize) {
        self.links.resize(total, Link::default());
    }

    /// The member that has been in the list for longest.
    pub(super) fn oldest(&self) -> Option<u32> {
        self.oldest
    }

    /// Adds a member that is not in the list, as the newest.
    pub(super) fn push(&mut self, member: u32) {
        let older = self.newest.replace(member);
        self.links[member as usize] = Link { older, newer: None };
        match older {
            Some(older) => self.links[older as usize].newer = Some(member),
            None => self.oldest = Some(member),
        }
    }

    /// Takes out a member that is in the list.
    pub(super) fn remove(&mut self, member: u32) {
        let Link { older, newer } = self.links[member as usize];
        match older {
            Some(older) => self.links[older as usize].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.links[newer as usize].older = older,
            None => self.newest = older,
        }
    }

    pub(super) fn oldest_first(&self) -> Vec<u32> {
        let next = |member: &u32| self.links[*member as usize].newer;
        std::iter::successors(self.oldest, next).collect()
    }
}
