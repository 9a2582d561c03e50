import os
from importlib.metadata import version

import discord

from answer import answer

print("version", version("py-cord"), flush=True)
SIM = os.environ["SIM"]
discord.http.Route.API_BASE_URL = f"{SIM}/api/v{{API_VERSION}}"

intents = discord.Intents.default()
intents.message_content = True
bot = discord.AutoShardedBot(intents=intents)


@bot.slash_command(description="Says hello")
async def hello(context):
    await context.respond("hello")


@bot.event
async def on_ready():
    await bot.change_presence(activity=discord.Game("chess"))


@bot.event
async def on_message(message):
    await answer(message, discord.File)


bot.run(os.environ["TOKEN"])
