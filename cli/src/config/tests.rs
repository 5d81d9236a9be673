use super::*;

fn write(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

const PROXY: &str = r#"
group = "erp"
state = "/var/lib/towline"
nbd = ["unix:/run/erp.sock"]
ring = "64M"

[[source]]
name = "system"
path = "/images/system.raw"

[[source]]
name = "data"
path = "/dev/vg/data"
"#;

#[test]
fn a_file_fills_the_same_struct_as_flags() {
    let file = write(PROXY);
    let config: ProxyConfig = load(file.path()).unwrap();
    config.check().unwrap();
    assert_eq!(config.group.as_str(), "erp");
    assert_eq!(config.ring, Some(64 << 20));
    let names: Vec<_> = config.sources.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["system", "data"]);
    assert_eq!(config.durability, Durability::Process);
    assert_eq!(config.latency, Latency::Balanced);
    assert_eq!((config.engine, config.cache), (Engine::Auto, None));
}

#[test]
fn a_wrong_key_in_a_file_is_a_usage_error_with_file_and_line() {
    let file = write(&PROXY.replace("ring =", "rign ="));
    let error = load::<ProxyConfig>(file.path()).unwrap_err();
    assert_eq!(crate::exit::exit_of(&error), crate::exit::Exit::Usage);
    let text = error.to_string();
    assert!(text.contains(&format!("{}:5: key `rign`", file.path().display())), "{text}");
    let file = write(&PROXY.replace("path = \"/dev", "paht = \"/dev"));
    let text = load::<ProxyConfig>(file.path()).unwrap_err().to_string();
    assert!(text.contains("paht"), "{text}");
}

#[test]
fn the_activity_maps_round_has_bounds() {
    let with = |text: &str| {
        let file = write(&PROXY.replace("ring =", &format!("cool_every = {text:?}\nring =")));
        load::<ProxyConfig>(file.path()).and_then(|config| config.check().map(|()| config))
    };
    assert_eq!(with("90s").unwrap().cool_every, Some(Duration::from_secs(90)));
    for bad in ["999ms", "2d", "soon", "0s"] {
        assert!(with(bad).is_err(), "{bad}");
    }
}

#[test]
fn two_disks_of_one_name_are_refused() {
    let file = write(&PROXY.replace("\"data\"", "\"system\""));
    let config: ProxyConfig = load(file.path()).unwrap();
    assert!(config.check().unwrap_err().to_string().contains("system"));
}

#[test]
fn a_receiver_without_certificates_is_refused_with_what_to_do() {
    let text = "listen = \"127.0.0.1:0\"\nstate = \"s\"\nnbd = [\"127.0.0.1:0\"]\n\
                [[target]]\npath = \"t\"\n";
    let config: ReceiveConfig = load(write(text).path()).unwrap();
    let error = config.check().unwrap_err().to_string();
    assert!(error.contains("towline pki init"), "{error}");
}

#[test]
fn a_store_takes_no_certificates_and_nice_has_a_range() {
    let text = "group = \"g\"\nstate = \"s\"\nto = \"s3://bucket/x\"\n";
    let check = |more: &str| {
        let config: ShipConfig = load(write(&format!("{text}{more}\n")).path()).unwrap();
        config.check().map_err(|error| error.to_string())
    };
    assert_eq!(check("nice = 19"), Ok(()));
    assert!(check("pki = \"p\"").is_err());
    assert!(check("nice = 20").unwrap_err().contains("0 to 19"));
}

#[test]
fn a_spill_is_a_size_or_a_device() {
    assert_eq!(spill_arg("16G"), Ok(SpillPlace::Bytes(16 << 30)));
    assert_eq!(spill_arg("0"), Ok(SpillPlace::Bytes(0)));
    assert_eq!(spill_arg("/dev/vg/spill"), Ok(SpillPlace::Device("/dev/vg/spill".into())));
    assert!(spill_arg("sdb").is_err());
}
