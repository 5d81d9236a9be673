//! A guest a volume: sends one request at a time, sends it again after a lost connection,
//! and goes on at the target after a promotion.

use crate::disk::CELLS_PER_VOLUME;
use crate::rng::Rng;
use std::collections::VecDeque;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Write(Vec<(usize, u32)>),
    /// Write zeroes and trim: both read back zero.
    Zero(Vec<usize>),
    Flush,
}

impl Request {
    pub fn values(&self) -> Vec<(usize, u32)> {
        match self {
            Request::Write(values) => values.clone(),
            Request::Zero(cells) => cells.iter().map(|c| (*c, 0)).collect(),
            Request::Flush => Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Guest {
    pub script: VecDeque<Request>,
    /// The request without an answer.
    pub current: Option<Request>,
    /// It is at the proxy.
    pub sent: bool,
}

impl Guest {
    pub fn is_done(&self) -> bool {
        self.current.is_none() && self.script.is_empty()
    }
}

/// Requests of one volume, chosen by the seed. `value` is the last value that was used.
pub fn script(volume: usize, count: usize, rng: &mut Rng, value: &mut u32) -> VecDeque<Request> {
    (0..count).map(|_| request(volume, rng, value)).collect()
}

fn request(volume: usize, rng: &mut Rng, value: &mut u32) -> Request {
    let first = rng.below(CELLS_PER_VOLUME);
    let len = 1 + rng.below(CELLS_PER_VOLUME - first);
    let cells = (first..first + len).map(|c| volume * CELLS_PER_VOLUME + c);
    match rng.below(10) {
        0 => Request::Flush,
        1 | 2 => Request::Zero(cells.collect()),
        _ => Request::Write(
            cells
                .map(|c| {
                    *value += 1;
                    (c, *value)
                })
                .collect(),
        ),
    }
}
