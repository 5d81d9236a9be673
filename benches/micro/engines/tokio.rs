//! tokio-uring, for comparison: a dependency of this bench and of nothing else.

use super::{BLOCK, Engine, STAGED_BYTES};
use std::rc::Rc;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;
use towline_block::buffer::DIRECT_ALIGN;

pub struct TokioUring(std::fs::File);

/// A task's buffer, and where in it an aligned block begins.
fn buffer(bytes: usize) -> (Vec<u8>, usize) {
    let buf = vec![0; bytes + DIRECT_ALIGN];
    let start = buf.as_ptr().align_offset(DIRECT_ALIGN);
    (buf, start)
}

impl TokioUring {
    fn all(&self, blocks: &[u64], depth: usize, writes: bool) {
        let file = self.0.try_clone().expect("a descriptor");
        tokio_uring::start(async {
            let file = Rc::new(File::from_std(file));
            let tasks: Vec<_> = (0..depth)
                .map(|task| {
                    let mine: Vec<u64> = blocks.iter().skip(task).step_by(depth).copied().collect();
                    tokio_uring::spawn(some(file.clone(), mine, writes))
                })
                .collect();
            for task in tasks {
                task.await.expect("a task");
            }
        });
    }
}

async fn some(file: Rc<File>, blocks: Vec<u64>, writes: bool) {
    let (mut buf, start) = buffer(BLOCK);
    for at in blocks {
        let slice = buf.slice(start..start + BLOCK);
        let (result, slice) = match writes {
            true => file.write_at(slice, at).submit().await,
            false => file.read_at(slice, at).await,
        };
        assert_eq!(result.expect("an operation"), BLOCK);
        buf = slice.into_inner();
    }
}

impl Engine for TokioUring {
    fn new(file: std::fs::File) -> TokioUring {
        TokioUring(file)
    }

    fn write(&mut self, blocks: &[u64], depth: usize) {
        self.all(blocks, depth, true);
    }

    fn read(&mut self, blocks: &[u64], depth: usize) {
        self.all(blocks, depth, false);
    }

    fn stage(&mut self, offset: u64, bytes: usize) {
        assert!(bytes <= STAGED_BYTES);
        let file = self.0.try_clone().expect("a descriptor");
        tokio_uring::start(async {
            let file = File::from_std(file);
            let (buf, start) = buffer(bytes);
            let (result, _) = file.write_at(buf.slice(start..start + bytes), offset).submit().await;
            assert_eq!(result.expect("a write"), bytes);
            file.sync_data().await.expect("a flush");
        });
    }
}
