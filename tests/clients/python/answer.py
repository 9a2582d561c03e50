import io


async def answer(message, file):
    """What discord.py and its forks do alike with a message."""
    if message.content == "!ping":
        pong = await message.reply("pong")
        await pong.edit(content="pong!")
        await message.add_reaction("👍")
        await message.channel.send(file=file(io.BytesIO(b"meow"), "cat.txt"))
        await pong.delete()
