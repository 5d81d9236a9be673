//! Why nothing is received now, noted for `status`: not durable, and nothing else depends on it.

use super::Layout;
use std::io;

/// Notes it, or that it is over.
pub fn note(layout: &Layout, why: Option<&str>) {
    let file = &layout.problem;
    let noted = match why {
        Some(why) => {
            let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
            folder.and_then(|()| std::fs::write(file, why))
        }
        None => match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    };
    if let Err(error) = noted {
        tracing::warn!("status is not told: cannot write {}: {error}", file.display());
    }
}

pub fn noted(layout: &Layout) -> Option<String> {
    std::fs::read_to_string(&layout.problem).ok().filter(|text| !text.is_empty())
}
