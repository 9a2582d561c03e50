const https = require("https");
const eris = require("eris");

console.log("version", eris.VERSION);
const sim = new URL(process.env.SIM);
const bot = new eris(`Bot ${process.env.TOKEN}`, {
  intents: ["guilds", "guildMessages", "messageContent"],
  maxShards: 2,
  rest: { domain: sim.hostname, agent: new https.Agent({ port: Number(sim.port) }) },
});

bot.on("ready", async () => {
  await bot.bulkEditCommands([{ name: "hello", description: "Says hello", type: 1 }]);
  bot.editStatus("idle", { name: "chess", type: 0 });
});
bot.on("error", (error) => console.log(error));

bot.on("messageCreate", async (message) => {
  if (message.content !== "!ping") return;
  const answer = await message.channel.createMessage({
    content: "pong",
    messageReference: { messageID: message.id },
  });
  await answer.edit("pong!");
  await message.addReaction("👍");
  await message.channel.createMessage({}, { file: Buffer.from("meow"), name: "cat.txt" });
  await answer.delete();
});

bot.on("interactionCreate", (interaction) => interaction.createMessage("hello"));

bot.connect();
