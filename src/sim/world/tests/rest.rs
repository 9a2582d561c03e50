//! Tests the responses of the HTTP API, and the gateway events that they cause.

use super::*;
use crate::sim::permissions::MANAGE_MESSAGES;

/// A world with a guild, a session with all intents, and the paths of its channel.
fn with_guild() -> (Rig, u64, String) {
    let mut rig = Rig::new(|builder| builder.guilds(1).rest_limit(1000, Duration::from_secs(1)));
    rig.identify(1, (0, 1), Intents::all());
    rig.take(1);
    let guild = rig.world.guilds[0];
    let channel = format!("/channels/{}", guild.channel());
    (rig, guild.id, channel)
}

impl Rig {
    /// Calls the HTTP API as the bot. Returns the status, the body, and the resulting events.
    fn call(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value, Vec<Value>) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, answer, _) = self.rest(method, path, TOKEN, &body);
        self.drive();
        (status, answer, self.take(1))
    }
}

/// The names of events.
fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .filter_map(|event| event["t"].as_str())
        .collect()
}

#[test]
fn rest_speaks_as_discord_does() {
    let mut rig = Rig::new(|builder| builder.guilds(1));
    rig.identify(1, (0, 1), Intents::all());
    rig.take(1);
    let channel = rig.world.guilds[0].channel();
    let messages = format!("/channels/{channel}/messages");
    assert_eq!(
        rig.rest("GET", "/users/@me", "wrong", ""),
        (
            401,
            json!({"message": "401: Unauthorized", "code": 0}),
            HashMap::new()
        )
    );
    assert_eq!(rig.rest("GET", "/nothing", TOKEN, "").0, 404);
    assert_eq!(
        rig.rest("POST", "/channels/5/messages", TOKEN, "{}").1["code"],
        10003
    );
    assert_eq!(rig.rest("POST", &messages, TOKEN, "{").1["code"], 50109);
    assert_eq!(rig.rest("POST", &messages, TOKEN, "{}").1["code"], 50006);
    let long = json!({"content": "a".repeat(2001)}).to_string();
    let (status, refused, _) = rig.rest("POST", &messages, TOKEN, &long);
    assert_eq!((status, &refused["code"]), (400, &json!(50035)));
    assert_eq!(
        refused["errors"]["content"]["_errors"][0]["code"],
        "BASE_TYPE_BAD_LENGTH"
    );
    let (status, posted, headers) = rig.rest("POST", &messages, TOKEN, r#"{"content":"hi"}"#);
    assert_eq!(
        (status, headers["x-ratelimit-remaining"].as_str()),
        (200, "1")
    );
    rig.drive();
    assert_eq!(
        rig.take(1)[0]["d"]["id"],
        posted["id"],
        "a posted message causes an event"
    );
    assert_eq!(rig.rest("GET", &messages, TOKEN, "").1[0]["content"], "hi");
    let path = format!("{messages}/{}", posted["id"].as_str().unwrap());
    assert_eq!(rig.rest("GET", &path, TOKEN, "").1["content"], "hi");

    rig.rest("POST", &messages, TOKEN, r#"{"content":"hi"}"#);
    let (status, limited, headers) = rig.rest("POST", &messages, TOKEN, r#"{"content":"hi"}"#);
    assert_eq!(
        (status, &limited["global"], headers["retry-after"].as_str()),
        (429, &json!(false), "5")
    );
    rig.sleep(5.0);
    assert_eq!(
        rig.rest("POST", &messages, TOKEN, r#"{"content":"hi"}"#).0,
        200
    );
    for _ in 0..60 {
        rig.rest("GET", &format!("/nothing{}", rig.world.next_id), TOKEN, "");
        rig.world.next_id += 1;
    }
    assert_eq!(rig.rest("GET", "/users/@me", TOKEN, "").1["global"], true);
}

#[test]
fn an_interaction_is_answered_once_and_in_time() {
    let mut rig = Rig::new(|builder| builder.guilds(1));
    rig.identify(1, (0, 1), Intents::GUILD_MESSAGES);
    rig.take(1);
    let channel = rig.world.guilds[0].channel();
    let ask = |rig: &mut Rig| {
        rig.world
            .interact(rig.now, &Interaction::command(channel, "hello", json!({})))
            .unwrap();
        rig.drive();
        let interaction = rig.take(1).remove(0);
        assert_eq!(
            (interaction["t"].as_str(), &interaction["d"]["data"]["name"]),
            (Some("INTERACTION_CREATE"), &json!("hello"))
        );
        let (id, token) = (
            interaction["d"]["id"].clone(),
            interaction["d"]["token"].clone(),
        );
        let [id, token] = [id, token].map(|value| value.as_str().unwrap().to_owned());
        (
            format!("/interactions/{id}/{token}/callback"),
            format!("/webhooks/{}/{token}", payloads::BOT),
        )
    };

    let (callback, webhook) = ask(&mut rig);
    assert_eq!(
        rig.rest("POST", &webhook, TOKEN, r#"{"content":"early"}"#)
            .1["code"],
        10015
    );
    assert_eq!(
        rig.rest("POST", &callback, "", r#"{"type":99}"#).1["code"],
        50035
    );
    assert_eq!(
        rig.rest(
            "POST",
            &callback,
            "",
            r#"{"type":4,"data":{"content":"hi"}}"#
        )
        .0,
        204
    );
    rig.drive();
    assert_eq!(rig.take(1)[0]["d"]["content"], "hi");
    assert_eq!(
        rig.rest(
            "POST",
            &callback,
            "",
            r#"{"type":4,"data":{"content":"hi"}}"#
        )
        .1["code"],
        40060
    );
    assert_eq!(
        rig.rest("GET", &format!("{webhook}/messages/@original"), "", "")
            .1["content"],
        "hi"
    );
    let (callback, _) = ask(&mut rig);
    rig.sleep(3.1);
    assert_eq!(
        rig.rest("POST", &callback, "", r#"{"type":5}"#).1["code"],
        10062
    );
    let (callback, webhook) = ask(&mut rig);
    assert_eq!(rig.rest("POST", &callback, "", r#"{"type":5}"#).0, 204);
    let original = format!("{webhook}/messages/@original");
    assert_eq!(
        rig.rest("PATCH", &original, "", r#"{"content":"later"}"#).1["content"],
        "later"
    );
    assert_eq!(
        rig.world.observed.posts(channel).collect::<Vec<_>>(),
        ["hi", "later"]
    );
}

#[test]
fn a_message_is_written_replied_to_edited_and_deleted() {
    let (mut rig, guild, channel) = with_guild();
    let messages = format!("{channel}/messages");
    let author = rig.world.guilds[0].member(0).to_string();
    let first = rig.world.chat(rig.now, guild + 1, "hello").unwrap();
    rig.drive();
    rig.take(1);

    let reply = json!({"content": "hi", "message_reference": {"message_id": first.to_string()}});
    let (status, reply, events) = rig.call("POST", &messages, &reply);
    assert_eq!((status, &reply["type"]), (200, &json!(19)));
    assert_eq!(reply["referenced_message"]["content"], "hello");
    assert_eq!(reply["message_reference"]["guild_id"], guild.to_string());
    assert_eq!(reply["mentions"][0]["id"], author);
    assert_eq!(names(&events), ["MESSAGE_CREATE"]);
    assert_eq!(events[0]["d"]["member"]["user"], Value::Null);

    let path = format!("{messages}/{}", reply["id"].as_str().unwrap());
    let (status, edited, events) = rig.call("PATCH", &path, &json!({"content": "hi!"}));
    assert_eq!((status, &edited["content"]), (200, &json!("hi!")));
    assert!(edited["edited_timestamp"].is_string());
    assert_eq!(names(&events), ["MESSAGE_UPDATE"]);
    let other = format!("{messages}/{first}");
    let refused = rig.call("PATCH", &other, &json!({"content": "mine"}));
    assert_eq!((refused.0, &refused.1["code"]), (403, &json!(50005)));

    let (status, _, events) = rig.call("DELETE", &path, &Value::Null);
    assert_eq!((status, names(&events)), (204, vec!["MESSAGE_DELETE"]));
    assert_eq!(rig.call("GET", &path, &Value::Null).1["code"], 10008);
    let (_, _, events) = rig.call("DELETE", &other, &Value::Null);
    assert_eq!(
        names(&events),
        ["GUILD_AUDIT_LOG_ENTRY_CREATE", "MESSAGE_DELETE"]
    );
}

#[test]
fn messages_are_listed_by_bounds_and_deleted_in_bulk() {
    let (mut rig, guild, channel) = with_guild();
    let ids: Vec<String> = (0..5)
        .map(|n| {
            rig.world
                .chat(rig.now, guild + 1, &n.to_string())
                .unwrap()
                .to_string()
        })
        .collect();
    let texts = |rig: &mut Rig, query: &str| {
        let path = format!("{channel}/messages?{query}");
        let (_, list, _) = rig.call("GET", &path, &Value::Null);
        let list = list.as_array().unwrap().iter();
        list.map(|message| message["content"].as_str().unwrap().to_owned())
            .collect::<String>()
    };
    assert_eq!(texts(&mut rig, "limit=2"), "43");
    assert_eq!(texts(&mut rig, &format!("limit=2&before={}", ids[3])), "21");
    assert_eq!(texts(&mut rig, &format!("limit=2&after={}", ids[1])), "32");
    assert_eq!(
        texts(&mut rig, &format!("limit=3&around={}", ids[2])),
        "321"
    );

    let bulk = format!("{channel}/messages/bulk-delete");
    let few = rig.call("POST", &bulk, &json!({"messages": [ids[0]]}));
    assert_eq!(few.1["code"], 50016);
    let (status, _, events) = rig.call("POST", &bulk, &json!({"messages": ids[..3]}));
    assert_eq!((status, &events[1]["d"]["ids"]), (204, &json!(ids[..3])));
    assert_eq!(texts(&mut rig, ""), "43");
}

#[test]
fn reactions_come_and_go() {
    let (mut rig, guild, channel) = with_guild();
    let message = rig.world.chat(rig.now, guild + 1, "hello").unwrap();
    rig.drive();
    rig.take(1);
    let reactions = format!("{channel}/messages/{message}/reactions");
    let (status, _, events) = rig.call(
        "PUT",
        &format!("{reactions}/%F0%9F%91%8D/@me"),
        &Value::Null,
    );
    assert_eq!(
        (status, names(&events)),
        (204, vec!["MESSAGE_REACTION_ADD"])
    );
    assert!(
        events[0]["d"]["member"]["user"]["bot"] == true,
        "{events:?}"
    );
    rig.world.member_reacts(guild + 1, message, "👍").unwrap();
    rig.drive();
    rig.take(1);
    let shown = rig
        .call(
            "GET",
            &format!("{channel}/messages/{message}"),
            &Value::Null,
        )
        .1;
    assert_eq!(shown["reactions"][0]["count"], 2);
    let custom = rig.call(
        "PUT",
        &format!("{reactions}/crab:{}/%40me", guild + 4),
        &Value::Null,
    );
    assert_eq!(custom.0, 204);
    let unknown = rig.call("PUT", &format!("{reactions}/crab:5/@me"), &Value::Null);
    assert_eq!(unknown.1["code"], 10014);

    let (_, users, _) = rig.call("GET", &format!("{reactions}/👍"), &Value::Null);
    assert_eq!(users.as_array().unwrap().len(), 2);
    rig.world.deny(guild, MANAGE_MESSAGES);
    let user = users[1]["id"].as_str().unwrap();
    let others = format!("{reactions}/👍/{user}");
    assert_eq!(rig.call("DELETE", &others, &Value::Null).1["code"], 50013);
    let (_, _, events) = rig.call("DELETE", &format!("{reactions}/👍/@me"), &Value::Null);
    assert_eq!(names(&events), ["MESSAGE_REACTION_REMOVE"]);
    rig.world.deny(guild, 0);
    let (_, _, events) = rig.call("DELETE", &reactions, &Value::Null);
    assert_eq!(names(&events), ["MESSAGE_REACTION_REMOVE_ALL"]);
}

#[test]
fn members_are_changed_kicked_and_banned() {
    let (mut rig, guild, _) = with_guild();
    let at = rig.world.guilds[0];
    let [one, two] = [at.member(1), at.member(2)];
    let member = format!("/guilds/{guild}/members/{one}");
    let (_, answer, events) = rig.call("PATCH", &member, &json!({"nick": "crab"}));
    assert_eq!(answer["nick"], "crab");
    assert_eq!(
        names(&events),
        ["GUILD_MEMBER_UPDATE", "GUILD_AUDIT_LOG_ENTRY_CREATE"]
    );
    let role = format!("{member}/roles/{}", at.role());
    assert_eq!(rig.call("PUT", &role, &Value::Null).0, 204);
    let member_now = rig.call("GET", &member, &Value::Null).1;
    assert_eq!(member_now["roles"], json!([at.role().to_string()]));
    assert_eq!(rig.call("DELETE", &role, &Value::Null).0, 204);
    assert_eq!(
        rig.call("PUT", &format!("{member}/roles/5"), &Value::Null)
            .1["code"],
        10011
    );

    let (status, _, events) = rig.call("DELETE", &member, &Value::Null);
    assert_eq!((status, names(&events)[0]), (204, "GUILD_MEMBER_REMOVE"));
    assert_eq!(rig.call("GET", &member, &Value::Null).1["code"], 10007);
    let ban = format!("/guilds/{guild}/bans/{two}");
    assert_eq!(rig.call("GET", &ban, &Value::Null).1["code"], 10026);
    let (_, _, events) = rig.call("PUT", &ban, &json!({}));
    assert_eq!(
        names(&events)[..2],
        ["GUILD_BAN_ADD", "GUILD_MEMBER_REMOVE"]
    );
    assert_eq!(
        rig.call("GET", &ban, &Value::Null).1["user"]["id"],
        two.to_string()
    );
    assert_eq!(
        names(&rig.call("DELETE", &ban, &Value::Null).2)[0],
        "GUILD_BAN_REMOVE"
    );
    let list = format!("/guilds/{guild}/members?limit=1000");
    assert_eq!(
        rig.call("GET", &list, &Value::Null)
            .1
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let counts = format!("/guilds/{guild}?with_counts=1");
    assert_eq!(
        rig.call("GET", &counts, &Value::Null).1["approximate_member_count"],
        2
    );
    let owner = format!("/guilds/{guild}/members/{}", at.member(0));
    assert_eq!(rig.call("DELETE", &owner, &Value::Null).1["code"], 50013);
}

#[test]
fn a_command_has_its_options_resolved() {
    let (mut rig, guild, _) = with_guild();
    let at = rig.world.guilds[0];
    let commands = format!("/applications/{}/guilds/{guild}/commands", payloads::BOT);
    let option = |name: &str, kind: u64| json!({"name": name, "type": kind, "description": "x"});
    let mut options: Vec<Value> = [
        ("text", 3),
        ("number", 4),
        ("flag", 5),
        ("user", 6),
        ("channel", 7),
        ("role", 8),
        ("who", 9),
        ("part", 10),
        ("file", 11),
    ]
    .map(|(name, kind)| option(name, kind))
    .into();
    options[0]["required"] = true.into();
    let nested = json!([{"name": "sub", "type": 1, "options": options.clone()}]);
    let list = json!([
        {"name": "all", "options": options},
        {"name": "group", "options": [{"name": "inner", "type": 2, "options": nested}]},
    ]);
    let (_, registered, _) = rig.call("PUT", &commands, &list);
    assert_eq!(
        (&registered[0]["type"], &registered[0]["nsfw"]),
        (&json!(1), &json!(false))
    );

    let given = json!({
        "text": "x", "number": 3, "flag": true, "user": at.member(1).to_string(),
        "channel": at.channel().to_string(), "role": at.role().to_string(),
        "who": at.role().to_string(), "part": 0.5, "file": "cat.png",
    });
    let used = |rig: &mut Rig, name: &str, given: Value| {
        let used = rig
            .world
            .interact(rig.now, &Interaction::command(at.channel(), name, given));
        rig.drive();
        used.map(|_| rig.take(1)[0]["d"]["data"].clone())
    };
    let data = used(&mut rig, "all", given.clone()).unwrap();
    assert_eq!(data["id"], registered[0]["id"]);
    assert_eq!(data["guild_id"], guild.to_string());
    let resolved = data["resolved"].as_object().unwrap();
    let kinds: Vec<_> = resolved.keys().map(String::as_str).collect();
    assert_eq!(
        kinds,
        ["attachments", "channels", "members", "roles", "users"]
    );
    let data = used(&mut rig, "group", json!({"inner": {"sub": given}})).unwrap();
    assert_eq!(
        data["options"][0]["options"][0]["options"]
            .as_array()
            .unwrap()
            .len(),
        9
    );

    for (given, wanted) in [
        (json!({}), "requires the option \"text\""),
        (json!({"text": 1}), "has no option text: 1"),
        (json!({"text": "x", "other": 1}), "has no option other"),
        (json!({"text": "x", "user": "7"}), "no user 7"),
    ] {
        let error = used(&mut rig, "all", given).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let typed = Interaction::autocomplete(at.channel(), "all", json!({"number": "4"}), "number");
    rig.world.interact(rig.now, &typed).unwrap();
    rig.drive();
    let typed = rig.take(1).remove(0);
    assert_eq!(
        (
            &typed["d"]["type"],
            &typed["d"]["data"]["options"][0]["focused"]
        ),
        (&json!(4), &json!(true))
    );
}

#[test]
fn components_and_modals_are_answered_in_their_way() {
    let (mut rig, guild, channel) = with_guild();
    let row = json!({"type": 1, "components": [
        {"type": 2, "style": 1, "label": "Go", "custom_id": "go"},
        {"type": 2, "style": 1, "label": "No", "custom_id": "no", "disabled": true},
    ]});
    let menu = json!({"type": 1, "components": [
        {"type": 3, "custom_id": "menu", "options": [{"label": "A", "value": "a"}]},
    ]});
    let message = json!({"content": "pick", "components": [row, menu]});
    let (_, message, _) = rig.call("POST", &format!("{channel}/messages"), &message);
    let act = |rig: &mut Rig, interaction: Interaction| {
        rig.world.interact(rig.now, &interaction).unwrap();
        rig.drive();
        let data = rig.take(1).remove(0)["d"].clone();
        let [id, token] = ["id", "token"].map(|field| data[field].as_str().unwrap().to_owned());
        (data, format!("/interactions/{id}/{token}/callback"))
    };
    let (data, callback) = act(&mut rig, Interaction::press(guild + 1, "go"));
    assert_eq!(
        (&data["type"], &data["message"]["id"]),
        (&json!(3), &message["id"])
    );
    let update = json!({"type": 7, "data": {"content": "done"}});
    let (status, answer, events) =
        rig.call("POST", &format!("{callback}?with_response=1"), &update);
    assert_eq!((status, names(&events)), (200, vec!["MESSAGE_UPDATE"]));
    assert_eq!(answer["resource"]["message"]["content"], "done");
    assert_eq!(answer["interaction"]["response_message_id"], message["id"]);

    let (data, callback) = act(&mut rig, Interaction::select(guild + 1, "menu", ["a"]));
    assert_eq!(data["data"]["values"], json!(["a"]));
    assert_eq!(
        rig.call("POST", &callback, &json!({"type": 8})).0,
        400,
        "it is not an autocompletion"
    );
    let input = json!({"type": 1, "components": [{"type": 4, "custom_id": "why", "style": 1, "label": "Why"}]});
    let modal =
        json!({"type": 9, "data": {"custom_id": "form", "title": "Form", "components": [input]}});
    assert_eq!(rig.call("POST", &callback, &modal).0, 204);
    let submit = Interaction::submit(guild + 1, "form", json!({"why": "because"}));
    let (data, callback) = act(&mut rig, submit);
    assert_eq!(
        data["data"]["components"][0]["components"][0]["value"],
        "because"
    );
    let hidden = json!({"type": 4, "data": {"content": "thanks", "flags": 64}});
    let (status, _, events) = rig.call("POST", &callback, &hidden);
    assert_eq!(
        (status, events.len()),
        (204, 0),
        "an ephemeral message causes no event"
    );

    for (interaction, wanted) in [
        (Interaction::press(guild + 1, "no"), "enabled component"),
        (Interaction::press(guild + 1, "other"), "\"other\""),
        (Interaction::select(guild + 1, "menu", ["b"]), "no option b"),
        (Interaction::press(5, "go"), "no channel 5"),
        (Interaction::press(guild + 1, "go").by(5), "no user 5"),
    ] {
        let error = rig
            .world
            .interact(rig.now, &interaction)
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn menus_of_users_and_messages_name_what_they_are_of() {
    let (mut rig, guild, _) = with_guild();
    let at = rig.world.guilds[0];
    let message = rig.world.chat(rig.now, guild + 1, "hello").unwrap();
    let user = at.member(1);
    rig.world
        .interact(
            rig.now,
            &Interaction::user_command(guild + 1, "Report", user),
        )
        .unwrap();
    rig.world
        .interact(
            rig.now,
            &Interaction::message_command(guild + 1, "Quote", message),
        )
        .unwrap();
    rig.drive();
    let events = rig.take(1);
    let [user_data, message_data] = [&events[1]["d"]["data"], &events[2]["d"]["data"]];
    assert_eq!(
        user_data["resolved"]["users"][user.to_string()]["id"],
        user.to_string()
    );
    assert_eq!(
        message_data["resolved"]["messages"][message.to_string()]["content"],
        "hello"
    );
    let direct = Interaction::command(payloads::DIRECT_CHANNEL, "hello", json!({}));
    rig.world.interact(rig.now, &direct).unwrap();
    rig.drive();
    let direct = rig.take(1).remove(0);
    assert_eq!(
        (&direct["d"]["context"], &direct["d"]["member"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(direct["d"]["user"]["id"], payloads::FRIEND.to_string());
}

#[test]
fn a_deferred_answer_is_filled_by_the_first_follow_up() {
    let (mut rig, guild, _) = with_guild();
    rig.world
        .interact(rig.now, &Interaction::command(guild + 1, "slow", json!({})))
        .unwrap();
    rig.drive();
    let data = rig.take(1).remove(0)["d"].clone();
    let [id, token] = ["id", "token"].map(|field| data[field].as_str().unwrap().to_owned());
    let defer = json!({"type": 5});
    let (_, _, events) = rig.call(
        "POST",
        &format!("/interactions/{id}/{token}/callback"),
        &defer,
    );
    assert_eq!(events[0]["d"]["flags"], 128);
    let webhook = format!("/webhooks/{}/{token}", payloads::BOT);
    let (_, first, events) = rig.call("POST", &webhook, &json!({"content": "one"}));
    assert_eq!(names(&events), ["MESSAGE_UPDATE"]);
    let (_, second, events) = rig.call("POST", &webhook, &json!({"content": "two"}));
    assert_eq!(names(&events), ["MESSAGE_CREATE"]);
    let original = rig
        .call(
            "GET",
            &format!("{webhook}/messages/%40original"),
            &Value::Null,
        )
        .1;
    assert_eq!(
        (&original["id"], &original["content"]),
        (&first["id"], &json!("one"))
    );
    let second = format!("{webhook}/messages/{}", second["id"].as_str().unwrap());
    assert_eq!(
        rig.call("PATCH", &second, &json!({"content": "2"})).1["content"],
        "2"
    );
    assert_eq!(rig.call("DELETE", &second, &Value::Null).0, 204);
    assert_eq!(rig.call("GET", &second, &Value::Null).1["code"], 10008);
    rig.sleep(15.0 * 60.0);
    assert_eq!(
        rig.call("POST", &webhook, &json!({"content": "late"})).1["code"],
        50027
    );
}

#[test]
fn a_direct_channel_is_opened_once() {
    let (mut rig, _, _) = with_guild();
    let member = rig.world.guilds[0].member(1).to_string();
    let open = json!({"recipient_id": member});
    let (_, channel, _) = rig.call("POST", "/users/@me/channels", &open);
    assert_eq!(channel["recipients"][0]["id"], member);
    assert_eq!(
        rig.call("POST", "/users/@me/channels", &open).1["id"],
        channel["id"]
    );
    let path = format!("/channels/{}/messages", channel["id"].as_str().unwrap());
    let (_, _, events) = rig.call("POST", &path, &json!({"content": "psst"}));
    assert_eq!(events[0]["d"]["guild_id"], Value::Null);
    let nobody = json!({"recipient_id": "5"});
    assert_eq!(
        rig.call("POST", "/users/@me/channels", &nobody).1["code"],
        10013
    );
}

#[test]
fn a_limit_is_of_a_route_and_a_channel() {
    let mut rig = Rig::new(|builder| {
        builder
            .guilds(2)
            .rest_limit(2, Duration::from_secs(10))
            .global_rest_limit(7)
    });
    let [one, two] = [0, 1].map(|n| format!("/channels/{}", rig.world.guilds[n].channel()));
    let status = |rig: &mut Rig, path: &str| rig.rest("GET", path, TOKEN, "").0;
    assert_eq!(
        [200, 200, 429].map(|_| status(&mut rig, &one)),
        [200, 200, 429]
    );
    assert_eq!(status(&mut rig, &two), 200);
    let (_, _, first) = rig.rest("GET", &format!("{one}/messages"), TOKEN, "");
    let (_, _, second) = rig.rest("GET", &format!("{two}/messages"), TOKEN, "");
    assert_eq!(first["x-ratelimit-bucket"], second["x-ratelimit-bucket"]);
    let (_, body, headers) = rig.rest("GET", &one, TOKEN, "");
    assert_eq!(
        (&body["global"], headers["via"].as_str()),
        (&json!(false), "1.1 google")
    );
    assert_eq!(rig.rest("GET", &two, TOKEN, "").1["global"], true);
    assert_eq!(rig.world.observed.warnings.len(), 3);
    rig.sleep(10.0);
    assert_eq!(status(&mut rig, &one), 200);
}

#[test]
fn a_reason_is_in_the_audit_log_and_with_the_ban() {
    let (mut rig, guild, _) = with_guild();
    let user = rig.world.guilds[0].member(1);
    let headers = [
        ("authorization", format!("Bot {TOKEN}")),
        ("user-agent", "DiscordBot (test, 1)".to_owned()),
        ("x-audit-log-reason", "sp%C3%A4m".to_owned()),
    ];
    let path = format!("/api/v10/guilds/{guild}/bans/{user}");
    let incoming = Incoming {
        method: "PUT",
        path: &path,
        query: BTreeMap::new(),
        headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
        body: b"",
    };

    rig.world.rest(rig.now, 99, &incoming);
    rig.drive();
    let events = rig.take(1);
    let entry = events.last().unwrap();
    assert_eq!(
        (&entry["d"]["action_type"], &entry["d"]["reason"]),
        (&json!(22), &json!("späm"))
    );
    let ban = rig
        .call("GET", &format!("/guilds/{guild}/bans/{user}"), &Value::Null)
        .1;
    assert_eq!(ban["reason"], "späm");
    let request = rig.world.take_request("PUT", "/guilds/{}/bans/{}").unwrap();
    assert_eq!(request.reason().as_deref(), Some("späm"));
    assert_eq!(
        rig.world.take_request("PUT", "/guilds/{}/bans/{}"),
        None,
        "the request has already been taken"
    );
}

#[test]
fn an_edit_takes_away_what_it_says_and_never_everything() {
    let (mut rig, _, channel) = with_guild();
    let messages = format!("{channel}/messages");
    let embed = json!({"content": "text", "embeds": [{"title": "x"}], "flags": 64 | 4});
    let (_, message, events) = rig.call("POST", &messages, &embed);
    assert_eq!(
        names(&events),
        ["MESSAGE_CREATE"],
        "a bot cannot make an ordinary message ephemeral"
    );
    assert_eq!(message["flags"], 4);
    let path = format!("{messages}/{}", message["id"].as_str().unwrap());
    assert_eq!(
        rig.call("PATCH", &path, &json!({"content": null})).1["content"],
        ""
    );
    let (_, kept, _) = rig.call("PATCH", &path, &json!({"flags": 0}));
    assert_eq!(
        (&kept["flags"], &kept["embeds"][0]["title"]),
        (&json!(0), &json!("x"))
    );
    assert_eq!(
        rig.call("PATCH", &path, &json!({"embeds": null})).1["code"],
        50006
    );
}

#[test]
fn members_are_kept_as_discord_keeps_them() {
    let (mut rig, guild, _) = with_guild();
    let at = rig.world.guilds[0];
    let member = format!("/guilds/{guild}/members/{}", at.member(1));
    let (_, changed, _) = rig.call("PATCH", &member, &json!({"nick": "", "roles": [at.role()]}));
    assert_eq!(
        (&changed["nick"], &changed["roles"]),
        (&Value::Null, &json!([at.role().to_string()]))
    );
    assert_eq!(
        rig.call("PATCH", &member, &json!({"roles": "x"})).1["code"],
        50035
    );
    assert_eq!(
        rig.call("PATCH", &member, &json!({"mute": null})).1["code"],
        50035
    );
    let own = format!("/guilds/{guild}/members/@me");
    let (_, changed, _) = rig.call("PATCH", &own, &json!({"nick": "bot", "roles": [at.role()]}));
    assert_eq!(
        (&changed["nick"], &changed["roles"]),
        (&json!("bot"), &json!([]))
    );
}

#[test]
fn lists_end() {
    let (mut rig, guild, channel) = with_guild();
    let message = rig.world.chat(rig.now, guild + 1, "hello").unwrap();
    rig.call(
        "PUT",
        &format!("{channel}/messages/{message}/reactions/ℹ️/@me"),
        &Value::Null,
    );
    rig.call("PUT", &format!("/guilds/{guild}/bans/7"), &Value::Null);

    for path in [
        format!("{channel}/messages/{message}/reactions/ℹ️"),
        format!("/guilds/{guild}/bans"),
        format!("/guilds/{guild}/members"),
        "/users/@me/guilds".to_owned(),
    ] {
        let list = rig.call("GET", &path, &Value::Null).1;
        assert!(!list.as_array().unwrap().is_empty(), "{path}");
        let after = format!("{path}?after={}", u64::MAX);
        assert_eq!(rig.call("GET", &after, &Value::Null).1, json!([]), "{path}");
    }
}

#[test]
fn a_command_keeps_its_id() {
    let (mut rig, _, _) = with_guild();
    let commands = format!("/applications/{}/commands", payloads::BOT);
    let list = json!([{"name": "a", "type": null}, {"name": "b"}]);
    let first = rig.call("PUT", &commands, &list).1;
    assert_eq!(first[0]["type"], 1);
    let second = rig.call("PUT", &commands, &list).1;
    assert_eq!(first[1]["id"], second[1]["id"]);
    assert_ne!(first[1]["version"], second[1]["version"]);
    let one = format!("{commands}/{}", first[0]["id"].as_str().unwrap());
    let edited = rig
        .call("PATCH", &one, &json!({"id": "5", "description": "x"}))
        .1;
    assert_eq!(
        (&edited["id"], &edited["description"]),
        (&first[0]["id"], &json!("x"))
    );
    assert_eq!(rig.call("DELETE", &one, &Value::Null).0, 204);
    assert_eq!(rig.call("GET", &one, &Value::Null).1["code"], 10063);
}

#[test]
fn a_webhook_touches_its_own_messages_alone() {
    let (mut rig, guild, _) = with_guild();
    let others = rig.world.chat(rig.now, guild + 1, "hello").unwrap();
    rig.world
        .interact(rig.now, &Interaction::command(guild + 1, "x", json!({})))
        .unwrap();
    rig.drive();
    let data = rig.take(1).pop().unwrap()["d"].clone();
    let [id, token] = ["id", "token"].map(|field| data[field].as_str().unwrap().to_owned());
    let hidden = json!({"type": 4, "data": {"content": "x", "flags": 64}});
    rig.call(
        "POST",
        &format!("/interactions/{id}/{token}/callback"),
        &hidden,
    );
    let messages = format!("/webhooks/{}/{token}/messages", payloads::BOT);
    let foreign = rig.call("DELETE", &format!("{messages}/{others}"), &Value::Null);
    assert_eq!(foreign.1["code"], 10008);
    let shown = json!({"content": "y", "flags": 0});
    let (_, edited, events) = rig.call("PATCH", &format!("{messages}/@original"), &shown);
    assert_eq!(
        (&edited["flags"], events.len()),
        (&json!(64), 0),
        "it stays ephemeral"
    );
}
