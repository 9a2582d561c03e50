//! The world accepts what widely used libraries send by default, even if it is not documented.

use super::*;
use crate::sim::traffic::Mix;

/// Sends an IDENTIFY with a change. Returns the close code and the number of warnings.
fn identified(change: impl FnOnce(&mut Value)) -> (Option<u16>, usize) {
    let mut rig = Rig::new(|builder| builder.guilds(1));
    rig.connect(1);
    let mut payload = identify((0, 1), Intents::GUILDS);
    change(&mut payload["d"]);
    rig.say(1, &payload);
    let closed = rig.closes.first().map(|(_, code)| *code);
    assert_eq!(closed.is_none(), rig.names(1).contains(&"READY".to_owned()));
    (closed, rig.world.observed.warnings.len())
}

#[test]
fn every_form_of_a_presence_is_accepted() {
    for presence in [
        json!({"since": null, "game": {"name": "x", "type": 0}, "status": "online", "afk": false}),
        json!({"since": null, "activities": null, "status": "online", "afk": false}),
        json!({"since": 0.0, "activities": [], "status": "idle", "afk": false}),
        json!({"since": {"secs": 1, "nanos": 5}, "activities": [], "status": "dnd", "afk": true}),
    ] {
        let given = presence.clone();
        assert_eq!(
            identified(|data| data["presence"] = given),
            (None, 1),
            "{presence}"
        );
        let mut rig = Rig::new(|builder| builder);
        rig.identify(1, (0, 1), Intents::GUILDS);
        rig.say(1, &json!({"op": 3, "d": presence}));
        assert_eq!(
            (rig.closes.len(), rig.world.observed.warnings.len()),
            (0, 1)
        );
        let warning = rig.world.observed.warnings[0].to_string();
        assert!(warning.contains("sent: op 3") && warning.contains("not known to refuse"));
    }

    let documented = json!({"since": 5, "activities": [], "status": "online", "afk": false});
    assert_eq!(identified(|data| data["presence"] = documented), (None, 0));
}

#[test]
fn odd_identifies_are_accepted() {
    assert_eq!(identified(|data| data["compress"] = Value::Null), (None, 0));
    let old = json!({"$os": "linux", "$browser": "x", "$device": "x"});
    assert_eq!(identified(|data| data["properties"] = old), (None, 1));
    assert_eq!(
        identified(|data| data["properties"] = json!({"os": "linux"})),
        (None, 1)
    );
    assert_eq!(
        identified(|data| data["intents"] = json!(1 | 1 << 17)),
        (None, 1)
    );
    assert_eq!(
        identified(|data| data["intents"] = json!(1 << 26)),
        (Some(4013), 0)
    );
    assert_eq!(
        identified(|data| data["intents"] = json!(-1)),
        (Some(4002), 0)
    );
}

#[test]
fn a_strict_world_refuses_what_is_not_documented() {
    let mut rig = Rig::new(|builder| builder.strict(true));
    rig.connect(1);
    let mut payload = identify((0, 1), Intents::GUILDS);
    payload["d"]["properties"] = json!({});
    rig.say(1, &payload);
    assert_eq!(
        (rig.closes.as_slice(), rig.violations()),
        ([(1, 4002)].as_slice(), 1)
    );
    assert!(!rig.world.observed.violations[0].is_refused);
    assert!(!rig.world.observed.violations[0].sent.contains(TOKEN));
}

#[test]
fn a_payload_may_come_in_a_binary_message() {
    let mut rig = Rig::new(|builder| builder);
    rig.connect(1);
    let payload = identify((0, 1), Intents::GUILDS).to_string();
    rig.world.binary(rig.now, 1, payload.as_bytes());
    rig.drive();
    assert!(rig.names(1).contains(&"READY".to_owned()));
    assert_eq!(
        (rig.violations(), rig.world.observed.warnings.len()),
        (0, 0)
    );
}

#[test]
fn older_versions_are_served() {
    for (version, warnings) in [
        (Some("10"), 0),
        (Some("9"), 0),
        (Some("8"), 1),
        (Some("6"), 1),
        (None, 1),
    ] {
        let mut rig = Rig::new(|builder| builder);
        rig.world.connected(rig.now, 1, version);
        rig.say(1, &identify((0, 1), Intents::GUILDS));
        let ready = rig.take(1).remove(1);
        let given = version.unwrap_or("6").parse::<u32>().unwrap();
        assert_eq!(
            (&ready["t"], &ready["d"]["v"]),
            (&json!("READY"), &json!(given))
        );
        assert_eq!(
            (rig.violations(), rig.world.observed.warnings.len()),
            (0, warnings)
        );
    }
}

#[test]
fn a_guild_lists_the_members_that_the_intents_allow() {
    for (intents, members, presences) in [
        (Intents::GUILDS, 1, 0),
        (Intents::GUILDS | Intents::GUILD_MEMBERS, 1, 0),
        (Intents::GUILDS | Intents::GUILD_PRESENCES, 50, 50),
    ] {
        let mut rig = Rig::new(|builder| builder.guilds(1).members(60));
        rig.identify(1, (0, 1), intents);
        let guild = rig.take(1).pop().unwrap();
        let count = |field: &str| guild["d"][field].as_array().unwrap().len();
        assert_eq!(
            (count("members"), count("presences")),
            (members, presences),
            "{intents:?}"
        );
        assert_eq!(
            guild["d"]["members"][0]["user"]["id"],
            payloads::BOT.to_string()
        );
        assert_eq!(
            (&guild["d"]["member_count"], &guild["d"]["large"]),
            (&json!(61), &json!(true))
        );
    }
}

#[test]
fn what_guilds_tell_of_adds_up() {
    let mut rig = Rig::new(|builder| {
        builder
            .guilds(1)
            .members(5)
            .heartbeat_interval(Duration::from_secs(200))
    });
    rig.identify(1, (0, 1), Intents::all());
    rig.world.set_activity(rig.now, 100.0);
    rig.sleep(60.0);
    rig.world.set_activity(rig.now, 0.0);
    let guild = rig.world.guilds[0];
    let (mut members, mut messages) = (
        std::collections::BTreeSet::new(),
        std::collections::BTreeSet::new(),
    );

    for event in rig.take(1) {
        let data = &event["d"];
        let user = data["user"]["id"].as_str().unwrap_or_default().to_owned();
        let message = data["message_id"]
            .as_str()
            .or(data["id"].as_str())
            .unwrap_or_default();
        match event["t"].as_str().unwrap_or_default() {
            "GUILD_CREATE" => {
                let list = data["members"].as_array().unwrap().iter();
                members = list
                    .map(|member| member["user"]["id"].as_str().unwrap().to_owned())
                    .collect();
            }
            "GUILD_MEMBER_ADD" => assert!(members.insert(user), "the member has already joined"),
            "GUILD_MEMBER_REMOVE" => assert!(members.remove(&user), "the member had not joined"),
            "GUILD_MEMBER_UPDATE" => assert!(members.contains(&user)),
            "MESSAGE_CREATE" => assert!(messages.insert(message.to_owned())),
            "MESSAGE_DELETE" => assert!(messages.remove(message)),
            "MESSAGE_UPDATE" | "MESSAGE_REACTION_ADD" | "MESSAGE_REACTION_REMOVE" => {
                assert!(messages.contains(message), "{event}");
            }
            _ => {}
        }
    }

    let known: std::collections::BTreeSet<_> = rig
        .world
        .member_ids(guild)
        .map(|id| id.to_string())
        .collect();
    assert_eq!(members, known);
    assert_eq!(rig.world.member_count(guild), members.len());
}

#[test]
fn an_activity_of_one_kind_does_not_run_dry() {
    for name in EVENT_NAMES {
        let mut rig = Rig::new(|builder| builder.guilds(1));
        rig.world.settings.mix = Mix::new(&[(name.to_owned(), 1)]).unwrap();
        rig.identify(1, (0, 1), Intents::all());
        rig.take(1);
        rig.world.set_activity(rig.now, 100.0);
        rig.sleep(10.0);
        let events = rig.take(1).len();
        assert!((990..=1010).contains(&events), "{name}: {events}");
    }
}

#[test]
fn a_user_agent_of_another_form_is_a_warning() {
    let mut rig = Rig::new(|builder| builder);
    let incoming = Incoming {
        method: "GET",
        path: "/api/v9/users/@me",
        query: BTreeMap::new(),
        headers: vec![("authorization".into(), format!("Bot {TOKEN}"))],
        body: b"",
    };

    let Reply::Answer(answered, _) = rig.world.rest(rig.now, 1, &incoming) else {
        panic!("it answers");
    };
    assert_eq!(
        (answered.status, rig.world.observed.warnings.len()),
        (200, 1)
    );
    let old = Incoming {
        path: "/api/v5/users/@me",
        ..incoming
    };
    let Reply::Answer(answered, _) = rig.world.rest(rig.now, 1, &old) else {
        panic!("it answers");
    };
    assert!(
        answered.status == 400 && answered.body.contains("50041"),
        "{}",
        answered.body
    );
}
