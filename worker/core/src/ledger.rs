//! The account of one device's memory, in pages: what is taken, by whom and for what.
//!
//! It decides only whether there is room. Who has to leave when there is none is the business of
//! [`crate::residency`].

use std::collections::BTreeMap;

use flotilla_protocol::ModelName;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of one page.
pub const PAGE_BYTES: u64 = 2 << 20;

/// A device's place on its worker, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceIndex(pub u32);

/// What pages are taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A model's weights.
    Weights,
    /// Keys and values.
    Kv,
    /// Intermediate results.
    Workspace,
}

/// Why pages were not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// Fewer pages are free than asked for; nothing was taken.
    #[error("{pages_needed} pages are needed, {pages_free} of {pages_total} are free")]
    NoRoom {
        /// Pages asked for.
        pages_needed: u64,
        /// Pages that are free.
        pages_free: u64,
        /// Pages of the device.
        pages_total: u64,
    },
}

/// Pages that somebody holds. It is given back by [`Ledger::release`], once; dropping it loses the pages.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "pages that are not released are lost"]
pub struct Reservation {
    id: u64,
    device: DeviceIndex,
    purpose: Purpose,
    pages: u64,
}

impl Reservation {
    /// What the pages are for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// How many they are.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }
}

/// The account of one device. Its size is fixed when it is opened.
#[derive(Debug)]
pub struct Ledger {
    device: DeviceIndex,
    pages_total: u64,
    pages_free: u64,
    /// The reservation for keys and values, which is no model's: see [`crate::kv`].
    pool_pages: u64,
    next_id: u64,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    owner: ModelName,
    purpose: Purpose,
    pages: u64,
}

impl Ledger {
    /// Opens the account of a device that has this many pages.
    #[must_use]
    pub fn new(device: DeviceIndex, pages_total: u64) -> Self {
        Self {
            device,
            pages_total,
            pages_free: pages_total,
            pool_pages: 0,
            next_id: 0,
            entries: BTreeMap::new(),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> DeviceIndex {
        self.device
    }

    /// Pages of the device.
    #[must_use]
    pub fn pages_total(&self) -> u64 {
        self.pages_total
    }

    /// Pages that nobody holds.
    #[must_use]
    pub fn pages_free(&self) -> u64 {
        self.pages_free
    }

    /// Pages that are held for a purpose.
    #[must_use]
    pub fn pages_for(&self, purpose: Purpose) -> u64 {
        let of_purpose = self.entries.values().filter(|entry| entry.purpose == purpose);
        let pages: u64 = of_purpose.map(|entry| entry.pages).sum();
        match purpose {
            Purpose::Kv => pages + self.pool_pages,
            Purpose::Weights | Purpose::Workspace => pages,
        }
    }

    /// Pages that the device's pool for keys and values holds.
    #[must_use]
    pub fn pool_pages(&self) -> u64 {
        self.pool_pages
    }

    /// Makes the pool hold so many pages.
    ///
    /// # Errors
    /// [`LedgerError::NoRoom`] when fewer are free than it would take; nothing has changed then.
    pub fn resize_pool(&mut self, pages: u64) -> Result<(), LedgerError> {
        let more = pages.saturating_sub(self.pool_pages);
        if more > self.pages_free {
            return Err(LedgerError::NoRoom {
                pages_needed: more,
                pages_free: self.pages_free,
                pages_total: self.pages_total,
            });
        }
        self.pages_free = self.pages_free + self.pool_pages - pages;
        self.pool_pages = pages;
        Ok(())
    }

    /// Pages that one owner holds.
    #[must_use]
    pub fn pages_of(&self, owner: &ModelName) -> u64 {
        let of_owner = self.entries.values().filter(|entry| entry.owner == *owner);
        of_owner.map(|entry| entry.pages).sum()
    }

    /// Takes pages.
    ///
    /// # Errors
    /// [`LedgerError::NoRoom`] when fewer are free; nothing is taken then.
    pub fn reserve(
        &mut self,
        owner: &ModelName,
        purpose: Purpose,
        pages: u64,
    ) -> Result<Reservation, LedgerError> {
        if pages > self.pages_free {
            return Err(LedgerError::NoRoom {
                pages_needed: pages,
                pages_free: self.pages_free,
                pages_total: self.pages_total,
            });
        }
        Ok(self.take(owner, purpose, pages))
    }

    /// Takes pages for several purposes, all or none; the reservations come in the order asked for.
    ///
    /// # Errors
    /// [`LedgerError::NoRoom`] with the sum when it is not free; nothing is taken then.
    pub fn reserve_all(
        &mut self,
        owner: &ModelName,
        parts: &[(Purpose, u64)],
    ) -> Result<Vec<Reservation>, LedgerError> {
        let pages_needed = parts
            .iter()
            .fold(0_u64, |sum, (_, pages)| sum.saturating_add(*pages));
        if pages_needed > self.pages_free {
            return Err(LedgerError::NoRoom {
                pages_needed,
                pages_free: self.pages_free,
                pages_total: self.pages_total,
            });
        }
        let parts = parts.iter();
        Ok(parts
            .map(|(purpose, pages)| self.take(owner, *purpose, *pages))
            .collect())
    }

    /// Takes a reservation's pages back.
    ///
    /// # Panics
    /// When the reservation is of another ledger.
    pub fn release(&mut self, reservation: Reservation) {
        assert_eq!(
            reservation.device, self.device,
            "a reservation goes back to its own ledger"
        );
        let entry = self.entries.remove(&reservation.id);
        let entry = entry.expect("a reservation is a value that only this ledger makes and release consumes");
        assert_eq!(entry.pages, reservation.pages, "a reservation never changes");
        self.pages_free += entry.pages;
    }

    /// Checks that what is held and what is free is what there is.
    ///
    /// # Panics
    /// When it is not.
    pub fn check_invariants(&self) {
        let held: u64 = self.entries.values().map(|entry| entry.pages).sum();
        assert_eq!(
            held + self.pool_pages + self.pages_free,
            self.pages_total,
            "held and free pages of device {} are all its pages",
            self.device.0
        );
    }

    fn take(&mut self, owner: &ModelName, purpose: Purpose, pages: u64) -> Reservation {
        let id = self.next_id;
        self.next_id += 1;
        self.pages_free -= pages;
        let owner = owner.clone();
        self.entries.insert(
            id,
            Entry {
                owner,
                purpose,
                pages,
            },
        );
        Reservation {
            id,
            device: self.device,
            purpose,
            pages,
        }
    }
}
