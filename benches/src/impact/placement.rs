//! Where client and server run.

use crate::load::{Cpus, allowed_cpus};
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// The scheduler decides.
    Unpinned,
    /// Client and server on one processor: no processor has to be woken.
    SameCore,
    /// Each on its own.
    SeparateCores,
    /// The client on one processor, as by `iothreadpin`; the server anywhere.
    PinnedClient,
    /// Unpinned, and every processor kept from halting by a spinner of the idle class.
    Awake,
}

/// Processors of the parts of a cell; `None`: any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seats {
    pub client: Option<Cpus>,
    pub server: Option<Cpus>,
    /// Shipper, receiver, a mirror's target.
    pub side: Option<Cpus>,
    /// Processors with a spinner.
    pub awake: Vec<usize>,
}

impl Placement {
    pub const ALL: [Placement; 5] = [
        Placement::Unpinned,
        Placement::SameCore,
        Placement::SeparateCores,
        Placement::PinnedClient,
        Placement::Awake,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Placement::Unpinned => "unpinned",
            Placement::SameCore => "same-core",
            Placement::SeparateCores => "separate-cores",
            Placement::PinnedClient => "pinned-client",
            Placement::Awake => "awake",
        }
    }

    /// `None`, when the machine has not enough processors.
    pub(super) fn seats(self) -> Option<Seats> {
        seats(self, allowed_cpus().numbers())
    }
}

/// The last processors are taken: the first often serves interrupts. What is beside
/// the server (shipper, receiver) gets the processors that are left, or any.
fn seats(placement: Placement, cpus: &[usize]) -> Option<Seats> {
    let rest = |taken: &[usize]| {
        let left: Vec<usize> = cpus.iter().copied().filter(|cpu| !taken.contains(cpu)).collect();
        (!left.is_empty()).then(|| Cpus::new(left))
    };
    match (placement, cpus) {
        (Placement::Unpinned, _) => Some(Seats::default()),
        (Placement::Awake, cpus) => Some(Seats { awake: cpus.to_vec(), ..Seats::default() }),
        (Placement::SameCore, [.., last]) => {
            let one = Some(Cpus::new([*last]));
            Some(Seats {
                client: one.clone(),
                server: one,
                side: rest(&[*last]),
                ..Seats::default()
            })
        }
        (Placement::PinnedClient, [_, .., last]) => {
            Some(Seats { client: Some(Cpus::new([*last])), ..Seats::default() })
        }
        (Placement::SeparateCores, [.., server, client]) => Some(Seats {
            client: Some(Cpus::new([*client])),
            server: Some(Cpus::new([*server])),
            side: rest(&[*server, *client]),
            ..Seats::default()
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placement_on_one_two_and_four_processors() {
        let text = |placement, cpus: &[usize]| {
            let show = |cpus: Option<Cpus>| cpus.map_or("any".into(), |cpus| cpus.to_string());
            seats(placement, cpus).map_or("none".into(), |s| {
                format!("{} {} {} {:?}", show(s.client), show(s.server), show(s.side), s.awake)
            })
        };
        for (placement, cpus, expected) in [
            (Placement::Unpinned, &[0][..], "any any any []"),
            (Placement::Awake, &[0, 1][..], "any any any [0, 1]"),
            (Placement::SameCore, &[0][..], "0 0 any []"),
            (Placement::SameCore, &[0, 1][..], "1 1 0 []"),
            (Placement::PinnedClient, &[0][..], "none"),
            (Placement::PinnedClient, &[0, 1][..], "1 any any []"),
            (Placement::SeparateCores, &[0][..], "none"),
            (Placement::SeparateCores, &[0, 1][..], "1 0 any []"),
            (Placement::SeparateCores, &[0, 1, 2, 3][..], "3 2 0,1 []"),
        ] {
            assert_eq!(text(placement, cpus), expected, "{placement:?} on {cpus:?}");
        }
    }
}
