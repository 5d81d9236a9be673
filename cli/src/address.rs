//! Where an export is, as a URI that NBD clients take.

/// `address` as a server tells it: `unix:PATH` or `HOST:PORT`.
pub fn nbd_uri(address: &str, export: &str) -> String {
    match address.strip_prefix("unix:") {
        Some(path) => format!("nbd+unix:///{export}?socket={}", escape(path)),
        None => format!("nbd://{address}/{export}"),
    }
}

/// What a path may not show in a query; export names need no escape.
fn escape(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_uris() {
        assert_eq!(
            nbd_uri("unix:/run/a b.sock", "disk0"),
            "nbd+unix:///disk0?socket=/run/a%20b.sock"
        );
        assert_eq!(nbd_uri("127.0.0.1:10809", "x"), "nbd://127.0.0.1:10809/x");
    }
}
