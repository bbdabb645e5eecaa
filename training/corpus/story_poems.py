"""Four-line poems on request."""

from __future__ import annotations

from random import Random

from training.corpus.conversation import Turn, filled

# The subjects, and the poems about each of them.
POEM_TEXT = """\
# the sea
The sea is wide, the sea is blue,
It sings a song for me and you.
The waves come in, the waves go out,
And little fish swim all about.

I hear the waves, I feel the sand,
The water runs across my hand.
A ship goes by, so far away,
I'll sail the sea myself one day.

The morning sun is on the sea,
A white bird flies and looks at me.
The wind is soft, the sky is wide,
I walk along the water's side.

# the moon
The moon is round, the moon is bright,
It keeps us company at night.
It looks into my room to say:
Sleep well until another day.

Up in the sky, so far, so high,
The silver moon goes sailing by.
It shines on field and house and tree,
And sends a little light to me.

# the sun
The sun comes up, the night is done,
Good morning, sky! Good morning, sun!
You warm the garden and the street,
The stones are warm beneath my feet.

The sun is gold, the sky is clear,
It is the best time of the year.
The flowers open, one by one,
And turn their faces to the sun.

# a cat
My little cat lies in the sun,
She had a lot of morning fun.
Now she is tired and wants to sleep,
Her dreams are warm, her dreams are deep.

A cat sat quiet on the wall,
She did not move or jump at all.
But when she heard me call her name,
She jumped right down, and home she came.

# a dog
My dog is always glad to see
A friend who walks along with me.
He runs ahead, he runs around,
And smells at every bit of ground.

A dog is waiting at the door,
His ball is lying on the floor.
He looks at me as if to say:
Come out with me, it's time to play.

# a bird
A little bird sat in a tree
And sang a morning song for me.
It sang of sun, it sang of spring,
Then flew away on quiet wing.

O little bird, up in the sky,
I wish that I, like you, could fly.
I'd fly above the hill and sea
And come back home in time for tea.

# rain
The rain is falling on the street,
It makes a little drumming beat.
The flowers drink, the grass turns green,
The freshest green I've ever seen.

Drip, drop, the rain is at my door,
It rained all night, it rains some more.
But I am warm and I am dry,
And watch the clouds go sailing by.

# snow
The snow is falling, soft and white,
It fell all day, it fell all night.
The roof, the garden and the tree
Are all as white as they can be.

White snow has covered all the ground,
It falls and does not make a sound.
We put on hats and run outside
And down the hill we slide and slide.

# spring
The snow is gone, the birds all sing,
The garden wakes, and it is spring.
The days are long, the grass is new,
The sky above is clear and blue.

A flower opens by the wall,
It is so bright, it is so small.
The birds come home, and how they sing!
They bring the warm new days of spring.

# autumn
The leaves are yellow, red and brown,
The wind comes by, and they fall down.
We pick the apples from the tree
And bake a pie for you and me.

The days grow short, the wind blows cold,
The trees are full of red and gold.
We sit inside and drink our tea,
As warm and cozy as can be.

# a tree
The old tree stands so big and tall,
It gives its shade to one and all.
The birds are safe within its crown
And never want to come back down.

A seed fell down, so round and small,
You hardly could see it at all.
Now look, it is a great green tree,
And it is twice as tall as me.

# a friend
A friend is someone at your side
When roads are long and fields are wide.
A friend will share your joy and pain,
The sunny days, the days of rain.

When I am sad, you sit with me,
You make me laugh, you make me tea.
When you are sad, I'll be there too,
For that is what good friends will do.

# a star
A little star shines in the night,
So far away, and yet so bright.
I make a wish and close my eyes
And dream of dark and shining skies.

One star came out above the hill,
The world was dark, the world was still.
It shone for me, it shone for you,
And soon the sky had quite a few.

# love
Love is a light, love is a song,
It keeps us warm, it makes us strong.
It grows with every kind word said,
It is our home, it is our bread.

Love is a hand that holds my own,
With love, I never feel alone.
It asks for little, gives a lot,
It is the best thing we have got.

# a flower
A flower grew beside the road,
And in the morning sun it glowed.
A bee came by and stopped to say:
You are the best I've seen today.

I have a flower, red and small,
It grows beside the garden wall.
I give it water every day,
And it grows prettier in May.

# the night
The night is dark, the night is deep,
The birds and flowers are asleep.
The stars look down from far above
And watch the ones we know and love.

The day is done, out goes the light,
The stars come out, we say good night.
So quiet are the house and street,
May all your dreams be soft and sweet.

# the wind
The wind goes dancing through the tree,
It plays a game of catch with me.
It took my hat, it ran away,
And gave it back another day.

I cannot see you, wind, but hear
How you are singing in my ear.
You push the clouds across the sky
And lift my kite up very high.

# a mouse
A tiny mouse lives in our house,
A very quiet little mouse.
She comes at night, when all is still,
And takes a crumb or two at will.

A mouse sat in a little hole
And ate some cheese out of a bowl.
She said: I know I am quite small,
But I am happy after all.
"""
REQUESTS = (
    "Write a poem about {subject}.", "Write me a poem about {subject}.", "Can you write a poem about {subject}?",
    "write a poem about {subject}", "Please write a short poem about {subject}.", "A poem about {subject}, please.",
    "I would like a poem about {subject}.", "Do you know a poem about {subject}?", "Tell me a poem about {subject}.",
    "poem about {subject}", "Could you make a poem about {subject}?", "Give me a little poem about {subject}.",
)  # fmt: skip
OPEN_REQUESTS = (
    "Write a poem.",
    "Can you write a poem?",
    "Tell me a poem.",
    "write me a short poem",
    "Please write a little poem.",
)


def read_poems(text: str) -> dict[str, list[str]]:
    """The poems by subject, from a text with a line "# subject" before the poems about it."""
    poems: dict[str, list[str]] = {}
    for section in text.strip().removeprefix("# ").split("\n\n# "):
        subject, _, lines = section.partition("\n")
        poems[subject] = lines.split("\n\n")
    return poems


POEMS = read_poems(POEM_TEXT)


def poem(random: Random) -> list[Turn]:
    """A poem about a subject, and sometimes a question about it."""
    subject = random.choice(list(POEMS))
    requests = OPEN_REQUESTS if random.random() < 0.1 else REQUESTS
    turns = [Turn(filled(random, requests, subject=subject), random.choice(POEMS[subject]))]
    chance = random.random()
    if chance < 0.12:
        question = random.choice(("What is the poem about?", "What was the poem about?", "what is it about?"))
        turns.append(Turn(question, f"The poem is about {subject}."))
    elif chance < 0.2:
        question = random.choice(("How many lines does the poem have?", "How many lines are there?"))
        turns.append(Turn(question, "The poem has four lines."))
    elif chance < 0.35:
        other = random.choice([name for name in POEMS if name != subject])
        question = filled(
            random, ("And one about {subject}?", "Now one about {subject}, please.", "And {subject}?"), subject=other
        )
        turns.append(Turn(question, random.choice(POEMS[other])))
    return turns
