import os

import nextcord
from nextcord.ext import commands

from answer import answer

print("version", nextcord.__version__, flush=True)
SIM = os.environ["SIM"]
nextcord.http.Route.BASE = f"{SIM}/api/v10"

intents = nextcord.Intents.default()
intents.message_content = True
bot = commands.AutoShardedBot(intents=intents)


@bot.slash_command(description="Says hello")
async def hello(interaction: nextcord.Interaction):
    await interaction.response.send_message("hello")


@bot.event
async def on_ready():
    await bot.change_presence(activity=nextcord.Game("chess"))


@bot.event
async def on_message(message):
    await answer(message, nextcord.File)


bot.run(os.environ["TOKEN"])
