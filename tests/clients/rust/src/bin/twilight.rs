use std::env;
use std::sync::Arc;

use twilight_gateway::{ConfigBuilder, Event, EventTypeFlags, Intents, Shard, ShardId, StreamExt};
use twilight_http::Client;
use twilight_http::request::channel::reaction::RequestReactionType;
use twilight_model::application::command::CommandType;
use twilight_model::application::interaction::InteractionType;
use twilight_model::channel::Message;
use twilight_model::gateway::payload::outgoing::UpdatePresence;
use twilight_model::gateway::presence::{ActivityType, MinimalActivity, Status};
use twilight_model::http::attachment::Attachment;
use twilight_model::http::interaction::{
    InteractionResponse, InteractionResponseData, InteractionResponseType,
};

#[tokio::main]
async fn main() {
    println!("version {}", clients::version("twilight-gateway"));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (sim, token) = (env::var("SIM").unwrap(), env::var("TOKEN").unwrap());
    let address = sim.trim_start_matches("http://").to_owned();
    let client = Client::builder()
        .token(token.clone())
        .proxy(address.clone(), true)
        .build();
    let client = Arc::new(client);
    let application = client.current_user_application().await.unwrap();
    let application = application.model().await.unwrap().id;
    let hello = twilight_model::application::command::Command {
        kind: CommandType::ChatInput,
        ..command()
    };
    let commands = client.interaction(application);
    commands.set_global_commands(&[hello]).await.unwrap();

    let intents = Intents::GUILDS | Intents::GUILD_MESSAGES | Intents::MESSAGE_CONTENT;
    let config = ConfigBuilder::new(token, intents)
        .proxy_url(format!("ws://{address}"))
        .build();
    let gateway = client.gateway().authed().await.unwrap();
    let total = gateway.model().await.unwrap().shards;
    let shards = (0..total).map(|number| ShardId::new(number, total));
    let runs = shards.map(|id| {
        let shard = Shard::with_config(id, config.clone());
        tokio::spawn(run(shard, Arc::clone(&client)))
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
}

async fn run(mut shard: Shard, client: Arc<Client>) {
    while let Some(event) = shard.next_event(EventTypeFlags::all()).await {
        match event {
            Ok(Event::Ready(_)) => {
                let activity = MinimalActivity {
                    kind: ActivityType::Playing,
                    name: "chess".to_owned(),
                    url: None,
                };
                let presence = UpdatePresence::new([activity.into()], false, None, Status::Idle);
                shard.command(&presence.unwrap());
            }
            Ok(Event::MessageCreate(message)) if message.content == "!ping" => {
                tokio::spawn(answer(Arc::clone(&client), Message::clone(&message)));
            }
            Ok(Event::InteractionCreate(interaction))
                if interaction.kind == InteractionType::ApplicationCommand =>
            {
                let data = InteractionResponseData {
                    content: Some("hello".to_owned()),
                    ..InteractionResponseData::default()
                };
                let response = InteractionResponse {
                    kind: InteractionResponseType::ChannelMessageWithSource,
                    data: Some(data),
                };
                let interactions = client.interaction(interaction.application_id);
                let answered =
                    interactions.create_response(interaction.id, &interaction.token, &response);
                answered.await.unwrap();
            }
            Ok(_) => {}
            Err(error) => println!("{error:?}"),
        }
    }
}

async fn answer(client: Arc<Client>, message: Message) {
    let channel = message.channel_id;
    let pong = client
        .create_message(channel)
        .reply(message.id)
        .content("pong");
    let pong = pong.await.unwrap().model().await.unwrap().id;
    client
        .update_message(channel, pong)
        .content(Some("pong!"))
        .await
        .unwrap();
    let emoji = RequestReactionType::Unicode { name: "👍" };
    client
        .create_reaction(channel, message.id, &emoji)
        .await
        .unwrap();
    let file = Attachment::from_bytes("cat.txt".to_owned(), b"meow".to_vec(), 0);
    client
        .create_message(channel)
        .attachments(&[file])
        .await
        .unwrap();
    client.delete_message(channel, pong).await.unwrap();
}

/// A slash command, as JSON since most of its fields are empty.
fn command() -> twilight_model::application::command::Command {
    let json = r#"{"type":1,"name":"hello","description":"Says hello","default_member_permissions":null,"options":[],"version":"1"}"#;
    serde_json::from_str(json).unwrap()
}
