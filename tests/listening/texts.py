"""What dia-tiny is asked to say: written for this, and to be kept out of its training.

No digits, no abbreviations, no rare names: who reads them has no choice, so that a word error is
the model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from tests.listening.gates import LONG_TEXT_CHARACTERS

# 3 to 12 s each. The first eight are what the tests say.
SENTENCES = (
    "The evening train was late again, so we walked home along the canal.",
    "My grandmother kept all of her letters in a wooden box under the stairs.",
    "Before you paint the fence, ask the neighbors whether they like green.",
    "Could you hold the ladder for a minute while I change this light bulb?",
    "It rained all night, and in the morning the whole valley was full of mist.",
    "The baker opens at six, but the best bread is gone before seven.",
    "We had planned to sail to the island, but the wind turned, the clouds came in, and the "
    "captain told us to wait until the next day.",
    "Nobody knows who built the stone bridge, or why it is so narrow.",
    "She tuned the old piano herself, and it has sounded bright and clear ever since.",
    "Please close the window, because the curtains are getting wet.",
    "There is a small cinema behind the post office that shows silent films.",
    "I would rather take the mountain road, even if it takes an hour longer.",
    "The children counted seven herons standing in the shallow water.",
    "When the power went out, somebody lit a candle and began to tell a story.",
    "He folded the newspaper, finished his coffee, and hurried out of the door.",
    "Our cat sleeps on the warmest shelf in the kitchen and refuses to move.",
    "The doctor said that a long walk would do me more good than any medicine.",
    "They planted three apple trees, two pears, and a row of cherries along the wall.",
    "If the shop has no lamp oil left, try the hardware store across the square.",
    "What a strange sound that was, like a drum under the floor.",
)
_OPENINGS = (
    "When the snow began to melt",
    "Long before the doors were opened",
    "After a week of heavy storms",
    "Without a word to anybody",
    "On the last day of the holidays",
    "Because the road was closed",
    "While the others were asleep",
    "To everyone's surprise",
    "A little further up the hill",
    "As soon as the music stopped",
)
_ENDINGS = (
    "the old farmer drove his sheep down to the meadow.",
    "a young woman with a yellow coat asked for the way to the castle.",
    "two boys carried a heavy basket over the bridge.",
    "the teacher told us about the ships that never came back.",
    "my brother found a silver coin between the stones.",
    "somebody rang the bell three times and then ran away.",
    "the whole family gathered around the kitchen table.",
    "a fox slipped through the gap in the fence.",
    "our neighbor painted his front door bright blue.",
    "the gardener covered the roses with straw.",
)

LONG_TEXT = (
    "In the far north of the country there is a village that can be reached only by boat. Forty "
    "people live there, most of them in wooden houses along the water. In winter the sun does not "
    "rise for seven weeks, and the lamps in the windows burn all day. The children learn to row "
    "before they learn to read. Their school has one room, one teacher, and a stove that is older "
    "than both of them. Every Monday the mail boat comes around the cape, and whoever hears its "
    "horn first runs down to the pier. It brings flour, coffee, and letters. "
    "Sometimes it brings a visitor, and then nobody talks about anything else for days. "
    "Last spring a young painter stepped ashore with a large suitcase. She asked for a room with "
    "a view of the sea, which made everybody laugh, because there is no other kind. She stayed "
    "until the autumn. She painted the nets that hung out to dry, the gulls on the roof of the "
    "church, and the hands of the old men who mend the boats. When she left, she gave each family "
    "a picture, and none of them was of the person who got it. The fisherman got the garden of "
    "the priest, and the priest got the boat of the fisherman. It took the village a while to "
    "understand. Since then people have been visiting each other more often, just to look at "
    "their own lives on the wall of somebody else. The painter has promised to return. Her room "
    "is kept warm, her cup stands on the shelf, and every Monday, when the horn sounds behind the "
    "cape, there is always one more person on the pier than there needs to be."
)

# Four turns each, every one longer than 2 s. The first four are what the tests say.
DIALOGUES = (
    (
        "I found this old camera in the attic this morning.",
        "That one belonged to my uncle, and he took it everywhere.",
        "Do you think that it still works after all these years?",
        "There is only one way to learn that, so let us buy some film.",
    ),
    (
        "The soup tastes different today, did you change something?",
        "I added a spoonful of honey and a little more pepper.",
        "It is much better than the one we had last winter.",
        "Then I will write it down before I forget how I made it.",
    ),
    (
        "Our boat is leaving in twenty minutes, are you ready?",
        "Almost, but I cannot find the bag with the blankets.",
        "You put it beside the front door before breakfast.",
        "So I did, and I must have walked past it three times.",
    ),
    (
        "Have you ever seen the northern lights with your own eyes?",
        "Only once, when I was working on a ship near the coast.",
        "People say that they make a sound, a kind of whisper.",
        "I heard nothing but the engine, and I forgot to breathe.",
    ),
    (
        "Somebody has been feeding the birds on our balcony again.",
        "It was me, because they looked so hungry in the snow.",
        "Now there are thirty of them waiting outside the window.",
        "We should ask the neighbors to share the seeds with us.",
    ),
    (
        "The meeting was moved to the small room upstairs.",
        "Nobody told me about that, so I waited in the hall.",
        "You did not miss much, we only talked about the budget.",
        "Good, then I will read the notes and go home early.",
    ),
    (
        "Is this the road that leads to the waterfall?",
        "It is, but the last part is closed because of the mud.",
        "Perhaps we could walk around it through the forest.",
        "You could, if you do not mind getting your boots dirty.",
    ),
    (
        "My daughter wants to learn how to play the trumpet.",
        "That will be a cheerful time for everybody in the house.",
        "We are thinking of building her a room in the barn.",
        "Build two of them, because my son has chosen the drums.",
    ),
    (
        "I dreamed that we were living on an island made of glass.",
        "Were there any trees on it, or was it completely empty?",
        "There was a single tree with a swing under the branches.",
        "Then it was not such a bad place to spend the night.",
    ),
    (
        "The clock in the station has been wrong since Tuesday.",
        "Everybody in the town is late, and nobody complains.",
        "Maybe we should leave it as it is for another week.",
        "I would vote for that, the mornings are so much calmer.",
    ),
)


def sentences(count: int) -> list[str]:
    """The first `count` of 120: those above, then every opening with every ending."""
    return [text for text, _ in zip(_every_sentence(), range(count), strict=False)]


def _every_sentence() -> Iterator[str]:
    yield from SENTENCES
    # Neighbours differ in both halves.
    for shift, index in product(range(len(_ENDINGS)), range(len(_OPENINGS))):
        yield f"{_OPENINGS[index]}, {_ENDINGS[(index + shift) % len(_ENDINGS)]}"


def tagged(turns: tuple[str, ...]) -> str:
    """The turns of a dialogue as a job's text."""
    return " ".join(f"[S{index % 2 + 1}] {turn}" for index, turn in enumerate(turns))


assert abs(len(LONG_TEXT) - LONG_TEXT_CHARACTERS) <= 15, len(LONG_TEXT)
