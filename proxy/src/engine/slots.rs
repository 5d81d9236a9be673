//! Slots of connections with a generation, and the tokens that name them to the
//! kernel.

/// What an operation in flight was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Wake,
    Sync,
    /// An operation at the source, by its slot.
    Source(u32),
    Recv(Key),
    Send(Key),
    /// To and from the upstream server, by the connection's number.
    UpstreamRecv(u32),
    UpstreamSend(u32),
    /// Watching a connection that is not read at the moment.
    Watch(Key),
}

/// Names a connection for good: a slot's next tenant has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    slot: u32,
    generation: u32,
}

/// 56 bits of key: 24 of slot, 32 of generation.
const SLOT_BITS: u32 = 24;

impl Purpose {
    pub fn token(self) -> u64 {
        let (kind, key) = match self {
            Purpose::Wake => (0, None),
            Purpose::Sync => (1, None),
            Purpose::Source(slot) => (5, Some(Key { slot, generation: 0 })),
            Purpose::UpstreamRecv(number) => (6, Some(Key { slot: 0, generation: number })),
            Purpose::UpstreamSend(number) => (7, Some(Key { slot: 0, generation: number })),
            Purpose::Recv(key) => (2, Some(key)),
            Purpose::Send(key) => (3, Some(key)),
            Purpose::Watch(key) => (4, Some(key)),
        };
        let key =
            key.map_or(0, |Key { slot, generation }| u64::from(slot) << 32 | u64::from(generation));
        kind << (SLOT_BITS + 32) | key
    }

    /// # Panics
    /// On a token that [`Purpose::token`] did not make.
    pub fn of_token(token: u64) -> Purpose {
        let slot = (token >> 32) as u32 & ((1 << SLOT_BITS) - 1);
        let key = Key { slot, generation: token as u32 };
        match token >> (SLOT_BITS + 32) {
            0 => Purpose::Wake,
            1 => Purpose::Sync,
            2 => Purpose::Recv(key),
            3 => Purpose::Send(key),
            4 => Purpose::Watch(key),
            5 => Purpose::Source(slot),
            6 => Purpose::UpstreamRecv(token as u32),
            7 => Purpose::UpstreamSend(token as u32),
            kind => unreachable!("token of kind {kind}"),
        }
    }
}

struct Slot<T> {
    generation: u32,
    tenant: Option<T>,
}

/// A table of `T` under keys.
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub fn new() -> Slots<T> {
        Slots { slots: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, tenant: T) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, tenant: None });
            self.slots.len() as u32 - 1
        });
        assert!(slot < 1 << SLOT_BITS, "more connections than tokens can name");
        let place = &mut self.slots[slot as usize];
        place.tenant = Some(tenant);
        Key { slot, generation: place.generation }
    }

    fn place(&mut self, key: Key) -> Option<&mut Slot<T>> {
        self.slots.get_mut(key.slot as usize).filter(|place| place.generation == key.generation)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.place(key)?.tenant.as_mut()
    }

    /// Frees the slot; its key names nobody from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.place(key)?;
        let tenant = place.tenant.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(tenant)
    }

    /// Keys of all tenants.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, place)| place.tenant.is_some())
            .map(|(slot, place)| Key { slot: slot as u32, generation: place.generation })
    }

    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_former_tenant_finds_nobody() {
        let mut slots = Slots::new();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second");
        assert_eq!(first.slot, second.slot);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(second), Some(&mut "second"));
        assert_eq!(slots.keys().collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn tokens_come_back_as_they_went() {
        let key = Key { slot: (1 << SLOT_BITS) - 1, generation: u32::MAX };
        let low = Key { slot: 0, generation: 0 };
        for key in [key, low] {
            for purpose in [Purpose::Recv(key), Purpose::Send(key), Purpose::Watch(key)] {
                assert_eq!(Purpose::of_token(purpose.token()), purpose);
            }
        }
        assert_eq!(Purpose::of_token(Purpose::Wake.token()), Purpose::Wake);
        assert_eq!(Purpose::of_token(Purpose::Source(9).token()), Purpose::Source(9));
        assert_eq!(Purpose::of_token(Purpose::Sync.token()), Purpose::Sync);
        for purpose in [Purpose::UpstreamRecv(u32::MAX), Purpose::UpstreamSend(7)] {
            assert_eq!(Purpose::of_token(purpose.token()), purpose);
        }
    }
}
