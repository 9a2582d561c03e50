import io


async def answer(message, file):
    """Handles a message in the same way for discord.py and its forks."""
    if message.content == "!ping":
        pong = await message.reply("pong")
        await pong.edit(content="pong!")
        await message.add_reaction("👍")
        await message.channel.send(file=file(io.BytesIO(b"meow"), "cat.txt"))
        await pong.delete()
