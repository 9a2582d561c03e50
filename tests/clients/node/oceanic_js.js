const { Client, Constants } = require("oceanic.js");

console.log("version", Constants.VERSION);
const client = new Client({
  auth: `Bot ${process.env.TOKEN}`,
  rest: { baseURL: `${process.env.SIM}/api/v10` },
  gateway: { intents: ["GUILDS", "GUILD_MESSAGES", "MESSAGE_CONTENT"], maxShards: 2 },
});

client.once("ready", async () => {
  const hello = { type: 1, name: "hello", description: "Says hello" };
  await client.application.bulkEditGlobalCommands([hello]);
  await client.editStatus("idle", [{ name: "chess", type: 0 }]);
});
client.on("error", (error) => console.log(error));

client.on("messageCreate", async (message) => {
  if (message.content !== "!ping") return;
  const answer = await message.channel.createMessage({
    content: "pong",
    messageReference: { messageID: message.id },
  });
  await answer.edit({ content: "pong!" });
  await message.createReaction("👍");
  const file = { name: "cat.txt", contents: Buffer.from("meow") };
  await message.channel.createMessage({ files: [file] });
  await answer.delete();
});

client.on("interactionCreate", (interaction) => interaction.createMessage({ content: "hello" }));

client.connect();
