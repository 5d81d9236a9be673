//! Several groups in one shipper and one receiver.

use crate::groups_rig::Groups;
use towline_tests::{Daemon, PATIENCE, args};

#[test]
fn four_groups_of_16_volumes_go_through_one_shipper_and_one_receiver() {
    let mut groups = Groups::new(4, 16);
    (0..4).for_each(|group| groups.start_proxy(group));
    groups.start_receive();
    groups.start_ship();
    for group in 0..4 {
        groups.wait_drained(group);
        for volume in 0..16 {
            let mut client = groups.client(group, volume);
            let data = [1 + (group * 16 + volume) as u8; 8192];
            client.write(4096 * volume as u64, &data).unwrap();
            client.flush().unwrap();
        }
    }
    (0..4).for_each(|group| groups.wait_drained(group));
    let listed = groups.target_status();
    assert_eq!(listed.len(), 4, "{listed:?}");
    for status in &listed {
        assert_eq!(status["volumes"].as_array().map_or(0, Vec::len), 16, "{status}");
        assert_eq!(status["state"], "live", "{status}");
    }
    groups.end();
    groups.assert_identical();
}

#[test]
fn a_group_that_cannot_be_received_or_shipped_holds_no_other_and_comes_by_itself() {
    let mut groups = Groups::new(3, 1);
    (0..3).for_each(|group| groups.start_proxy(group));
    // The second one's state is damaged at the target; the third one has another shipper.
    let damaged = groups.target_state(1).join("receive").join("state.json");
    std::fs::create_dir_all(damaged.parent().unwrap()).unwrap();
    std::fs::write(&damaged, "{").unwrap();
    groups.start_receive();
    let other = args![
        "ship",
        "--group",
        groups.name(2),
        "--state",
        groups.state(),
        "--to",
        groups.address(),
        "--insecure-loopback",
    ];
    let other = Daemon::ready(&other);
    groups.start_ship();
    groups.wait_drained(0);
    groups.wait_drained(2);
    let mut client = groups.client(0, 0);
    client.write(0, &[9; 65536]).unwrap();
    groups.wait_drained(0);
    let failed = groups.target_status();
    let failed = failed.iter().find(|status| status["group"] == groups.name(1)).unwrap();
    let said = failed["last_error"].as_str().unwrap_or_default();
    assert!(said.contains("is damaged"), "{failed}");
    assert!(groups.ship_says(2).contains("trying again"), "{}", groups.ship_says(2));

    std::fs::remove_file(&damaged).unwrap();
    assert!(other.terminate().success());
    groups.wait_drained(1);
    let mut client = groups.client(2, 0);
    client.write(0, &[8; 65536]).unwrap();
    groups.wait_drained(2);
    assert_eq!(groups.target_status()[1]["last_error"], serde_json::Value::Null);
    groups.end();
    groups.assert_identical();
}

#[test]
fn groups_of_several_connections_go_on_after_each_restart_of_their_receiver() {
    let mut groups = Groups::new(3, 1);
    (0..3).for_each(|group| groups.start_proxy(group));
    groups.start_receive();
    groups.start_ship();
    (0..3).for_each(|group| groups.wait_drained(group));
    for round in 1..=6 {
        groups.restart_receive();
        for group in 0..3 {
            let mut client = groups.client(group, 0);
            client.write(4096 * round as u64, &[round; 65536]).unwrap();
            groups.wait_drained(group);
            let said = groups.ship_says(group);
            assert!(!said.contains("shipping stopped"), "{said}");
        }
    }
    groups.end();
    groups.assert_identical();
}

#[test]
fn two_groups_of_one_name_are_refused_with_what_to_do() {
    let groups = Groups::new(1, 1);
    let twice = std::fs::read_to_string(groups.receive_file()).unwrap();
    let table = &twice[twice.find("[[groups]]").unwrap()..];
    std::fs::write(groups.receive_file(), format!("{twice}\n{table}")).unwrap();
    let refused = towline_tests::run(
        towline_tests::towline(),
        args!["receive", "--config", groups.receive_file()],
        PATIENCE,
    );
    assert_eq!(refused.code(), 64, "{refused}");
    assert!(refused.stderr.contains("give each its own"), "{refused}");
}
