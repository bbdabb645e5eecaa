"""Common things of everyday life: animals, food, objects, places, nature, and jobs."""

# Tables with one row in a line, however long.
# ruff: noqa: E501

from __future__ import annotations

from typing import NamedTuple


class Animal(NamedTuple):
    """An animal, with what a child would ask about it."""

    name: str
    kind: str  # what it is, as in "is a/an ..."
    description: str
    color: str
    home: str
    food: str
    legs: int
    abilities: str  # of: fly, swim, run, climb, jump
    size: int  # from 1 (insects) to 9 (whale)


class Thing(NamedTuple):
    """An object, with its kind, description, color (or ""), place, and use."""

    name: str
    kind: str
    description: str
    color: str
    place: str
    use: str


class Job(NamedTuple):
    """A job: what the person does, and where."""

    name: str
    does: str
    place: str


ANIMALS = (
    Animal("cat", "animal", "a small animal with soft fur", "black, white, gray, or orange", "in a house with people", "meat and fish", 4, "run climb jump swim", 3),
    Animal("dog", "animal", "a friendly animal that likes to be with people", "black, white, or brown", "in a house with people", "meat and dog food", 4, "run swim jump", 4),
    Animal("horse", "animal", "a big, strong animal that people can ride", "brown, black, or white", "on a farm", "grass and hay", 4, "run swim jump", 7),
    Animal("cow", "animal", "a big farm animal that gives milk", "black and white, or brown", "on a farm", "grass", 4, "run swim", 7),
    Animal("pig", "animal", "a farm animal with a round nose", "pink", "on a farm", "plants and corn", 4, "run swim", 5),
    Animal("sheep", "animal", "a farm animal with thick wool", "white", "on a farm", "grass", 4, "run jump", 5),
    Animal("goat", "animal", "a farm animal with horns", "white or brown", "on a farm", "grass and leaves", 4, "run climb jump", 5),
    Animal("rabbit", "animal", "a small animal with long ears", "brown, gray, or white", "in a hole in the ground", "grass and vegetables", 4, "run jump", 3),
    Animal("mouse", "animal", "a very small animal with a long tail", "gray or brown", "in fields and houses", "seeds and grain", 4, "run climb jump", 2),
    Animal("lion", "animal", "a big, wild cat", "yellow-brown", "in Africa", "meat", 4, "run jump climb", 6),
    Animal("tiger", "animal", "a big, wild cat with stripes", "orange with black stripes", "in the forests of Asia", "meat", 4, "run jump swim climb", 6),
    Animal("elephant", "animal", "a very big animal with a long trunk", "gray", "in Africa and Asia", "grass, leaves, and fruit", 4, "run swim", 8),
    Animal("giraffe", "animal", "a very tall animal with a long neck", "yellow with brown spots", "in Africa", "leaves", 4, "run", 8),
    Animal("zebra", "animal", "an animal like a horse with stripes", "black and white", "in Africa", "grass", 4, "run jump swim", 6),
    Animal("monkey", "animal", "a clever animal that lives in trees", "brown", "in warm forests", "fruit and leaves", 2, "run climb jump", 4),
    Animal("bear", "animal", "a big, heavy animal with thick fur", "brown, black, or white", "in the forest", "fish, berries, and plants", 4, "run climb swim", 6),
    Animal("fox", "animal", "a wild animal like a small dog with a thick tail", "red", "in the forest", "mice and berries", 4, "run jump swim", 3),
    Animal("wolf", "animal", "a wild animal that looks like a dog", "gray", "in the forest", "meat", 4, "run jump swim", 5),
    Animal("deer", "animal", "a shy animal with long, thin legs", "brown", "in the forest", "grass and leaves", 4, "run jump swim", 5),
    Animal("squirrel", "animal", "a small animal with a thick tail", "red or gray", "in trees", "nuts and seeds", 4, "run climb jump", 2),
    Animal("kangaroo", "animal", "a big animal that jumps on its back legs", "brown or gray", "in Australia", "grass", 4, "jump swim", 5),
    Animal("panda", "animal", "a black and white bear", "black and white", "in the mountains of China", "bamboo", 4, "climb run swim", 6),
    Animal("whale", "animal", "a very big animal that lives in the sea", "gray or blue", "in the sea", "small sea animals", 0, "swim jump", 9),
    Animal("dolphin", "animal", "a clever animal that lives in the sea", "gray", "in the sea", "fish", 0, "swim jump", 6),
    Animal("fish", "animal", "an animal that lives in water", "silver, gold, or many other colors", "in water", "small plants and animals", 0, "swim", 2),
    Animal("shark", "fish", "a big fish with sharp teeth", "gray", "in the sea", "fish", 0, "swim", 6),
    Animal("frog", "animal", "a small animal that likes water", "green", "near ponds", "insects", 4, "swim jump", 2),
    Animal("snake", "animal", "a long animal without legs", "green or brown", "in grass, forests, and deserts", "mice and other small animals", 0, "swim climb", 3),
    Animal("bird", "animal", "an animal with wings and feathers", "brown, black, or many other colors", "in trees", "seeds and insects", 2, "fly", 2),
    Animal("duck", "bird", "a bird that likes water", "brown, green, or white", "near lakes and rivers", "water plants and insects", 2, "fly swim", 3),
    Animal("chicken", "bird", "a farm bird that lays eggs", "white or brown", "on a farm", "grain and seeds", 2, "run", 3),
    Animal("owl", "bird", "a bird that is awake at night", "brown or white", "in trees", "mice", 2, "fly", 3),
    Animal("eagle", "bird", "a big bird with strong wings", "brown", "in the mountains", "fish and small animals", 2, "fly", 4),
    Animal("penguin", "bird", "a bird that swims very well", "black and white", "in the cold south", "fish", 2, "swim", 4),
    Animal("parrot", "bird", "a bird that can learn to say words", "green, red, or blue", "in warm forests", "seeds, nuts, and fruit", 2, "fly climb", 3),
    Animal("bee", "insect", "a small insect that makes honey", "yellow and black", "in a hive", "honey and pollen", 6, "fly", 1),
    Animal("ant", "insect", "a very small insect that works hard", "black, brown, or red", "in a nest in the ground", "seeds and sweet things", 6, "climb", 1),
    Animal("butterfly", "insect", "an insect with beautiful wings", "yellow, blue, or many other colors", "in gardens and fields", "the sweet juice of flowers", 6, "fly", 1),
)  # fmt: skip

SOUNDS = (
    ("cat", "meow"), ("dog", "woof"), ("cow", "moo"), ("pig", "oink"), ("sheep", "baa"), ("horse", "neigh"),
    ("duck", "quack"), ("lion", "roar"), ("mouse", "squeak"), ("bee", "buzz"), ("bird", "tweet"), ("owl", "hoo"),
    ("frog", "croak"), ("snake", "hiss"), ("chicken", "cluck"),
)  # fmt: skip

THINGS = (
    Thing("apple", "fruit", "a round, sweet fruit", "red, green, or yellow", "on a tree", "eating and making juice"),
    Thing("banana", "fruit", "a long, sweet fruit", "yellow", "on a banana plant", "eating"),
    Thing("orange", "fruit", "a round fruit full of juice", "orange", "on a tree", "eating and making juice"),
    Thing("lemon", "fruit", "a sour fruit", "yellow", "on a tree", "making drinks and cakes"),
    Thing("pear", "fruit", "a soft, sweet fruit", "green or yellow", "on a tree", "eating"),
    Thing("cherry", "fruit", "a small, sweet fruit with a stone", "red", "on a tree", "eating and baking"),
    Thing("strawberry", "fruit", "a small, sweet fruit", "red", "in the garden", "eating and making jam"),
    Thing("grape", "fruit", "a small, round fruit", "green or purple", "on a vine", "eating and making wine"),
    Thing("peach", "fruit", "a soft, sweet fruit with a stone", "orange and pink", "on a tree", "eating"),
    Thing("plum", "fruit", "a soft fruit with a stone", "purple", "on a tree", "eating and baking"),
    Thing("mango", "fruit", "a sweet fruit from warm countries", "yellow and red", "on a tree", "eating"),
    Thing("coconut", "fruit", "a big, hard fruit with white meat", "brown", "on a palm tree", "eating and drinking"),
    Thing("carrot", "vegetable", "a long vegetable that grows in the ground", "orange", "in the garden", "eating"),
    Thing("potato", "vegetable", "a round vegetable that grows in the ground", "brown or yellow", "in the ground", "cooking"),
    Thing("onion", "vegetable", "a round vegetable with a strong smell", "brown, white, or red", "in the garden", "cooking"),
    Thing("cucumber", "vegetable", "a long, fresh vegetable", "green", "in the garden", "making salad"),
    Thing("pumpkin", "vegetable", "a very big, round vegetable", "orange", "in the garden", "making soup and pies"),
    Thing("cabbage", "vegetable", "a round vegetable with many leaves", "green", "in the garden", "making salad and soup"),
    Thing("car", "vehicle", "a vehicle with four wheels", "", "on the road", "driving from place to place"),
    Thing("bus", "vehicle", "a big vehicle for many people", "", "on the road", "taking many people through the city"),
    Thing("bicycle", "vehicle", "a vehicle with two wheels and pedals", "", "on the street", "riding to work or school"),
    Thing("train", "vehicle", "a long vehicle that runs on rails", "", "at the station", "traveling between cities"),
    Thing("plane", "vehicle", "a vehicle that flies", "", "at the airport", "traveling to far countries"),
    Thing("boat", "vehicle", "a small vehicle that moves on water", "", "on a lake or a river", "traveling on water"),
    Thing("ship", "vehicle", "a very big boat", "", "on the sea", "carrying people and goods over the sea"),
    Thing("truck", "vehicle", "a big vehicle for heavy things", "", "on the road", "carrying heavy things"),
    Thing("tractor", "vehicle", "a strong vehicle for farm work", "", "on a farm", "working in the fields"),
    Thing("fire truck", "vehicle", "a big vehicle for firefighters", "red", "at the fire station", "helping to put out fires"),
    Thing("hat", "piece of clothing", "a piece of clothing for the head", "", "on the head", "keeping off the sun"),
    Thing("coat", "piece of clothing", "a warm piece of clothing for cold days", "", "in the closet", "keeping the body warm"),
    Thing("shirt", "piece of clothing", "a light piece of clothing with sleeves", "", "in the closet", "covering the upper body"),
    Thing("sock", "piece of clothing", "a soft piece of clothing for the foot", "", "in a drawer", "keeping a foot warm"),
    Thing("glove", "piece of clothing", "a piece of clothing for the hand", "", "in a pocket", "keeping a hand warm"),
    Thing("scarf", "piece of clothing", "a long piece of cloth for the neck", "", "around the neck", "keeping the neck warm"),
    Thing("dress", "piece of clothing", "a piece of clothing with a skirt", "", "in the closet", "wearing to school, work, or a party"),
    Thing("hammer", "tool", "a tool with a heavy head", "", "in a toolbox", "hitting nails"),
    Thing("saw", "tool", "a tool with many sharp teeth", "", "in a toolbox", "cutting wood"),
    Thing("screwdriver", "tool", "a tool for turning screws", "", "in a toolbox", "turning screws"),
    Thing("knife", "tool", "a tool with a sharp edge", "", "in the kitchen", "cutting food"),
    Thing("spoon", "tool", "a small tool for eating", "", "in the kitchen", "eating soup"),
    Thing("fork", "tool", "a small tool with points for eating", "", "in the kitchen", "eating"),
    Thing("pencil", "tool", "a thin tool for writing and drawing", "", "on a desk", "writing and drawing"),
    Thing("brush", "tool", "a tool with many soft hairs", "", "in a paint box", "painting"),
    Thing("shovel", "tool", "a tool with a long handle", "", "in the garden", "digging holes"),
    Thing("ladder", "tool", "a tool with many steps", "", "in the garage", "climbing up to high places"),
    Thing("umbrella", "tool", "a small roof that you carry in your hand", "", "near the door", "staying dry in the rain"),
    Thing("key", "tool", "a small metal tool for a lock", "", "in a pocket", "opening a door"),
    Thing("lamp", "object", "an object that gives light", "", "on a table", "making a room bright"),
    Thing("clock", "object", "an object that shows the time", "", "on the wall", "telling the time"),
    Thing("book", "object", "an object with many pages to read", "", "on a shelf", "reading and learning"),
    Thing("cup", "object", "a small object for drinks", "", "in the kitchen", "drinking tea or coffee"),
    Thing("phone", "object", "an object for talking with people who are far away", "", "in a pocket", "calling people"),
    Thing("ball", "toy", "a round toy", "", "in the garden", "playing games"),
    Thing("kite", "toy", "a light toy that flies in the wind", "", "in the sky", "playing in the wind"),
    Thing("doll", "toy", "a toy that looks like a person", "", "in a toy box", "playing"),
    Thing("chair", "piece of furniture", "a piece of furniture with four legs and a back", "", "at the table", "sitting"),
    Thing("table", "piece of furniture", "a piece of furniture with a flat top", "", "in the kitchen", "eating and working"),
    Thing("bed", "piece of furniture", "a soft piece of furniture", "", "in the bedroom", "sleeping"),
    Thing("sofa", "piece of furniture", "a long, soft seat for several people", "", "in the living room", "sitting and resting"),
    Thing("desk", "piece of furniture", "a table for work", "", "in the office", "writing and working"),
    Thing("shelf", "piece of furniture", "a board that holds things", "", "on the wall", "keeping books and other things"),
    Thing("closet", "piece of furniture", "a place with a door for clothes", "", "in the bedroom", "keeping clothes"),
    Thing("school", "place", "a place with teachers and children", "", "in the town", "learning"),
    Thing("library", "place", "a place with many books", "", "in the town", "reading and borrowing books"),
    Thing("hospital", "place", "a place with doctors and nurses", "", "in the town", "helping sick people"),
    Thing("market", "place", "a place with many small shops", "", "in the town", "buying food"),
    Thing("bakery", "place", "a shop with fresh bread", "", "in the town", "making and selling bread"),
    Thing("park", "place", "a green place with trees and grass", "", "in the town", "walking and playing"),
    Thing("kitchen", "place", "a room with a stove", "", "in a house", "cooking"),
    Thing("garden", "place", "a place with plants and flowers", "", "near a house", "growing flowers and vegetables"),
    Thing("bridge", "place", "a road over a river", "", "over a river", "crossing a river"),
    Thing("station", "place", "a place where trains stop", "", "in the town", "getting on and off trains"),
)  # fmt: skip

# Nature: the words with their article, the definition, the color or "".
NATURE = (
    ("the sun", "The sun is a star that gives us light and heat.", "yellow"),
    ("the moon", "The moon is a ball of rock that moves around the Earth.", "gray"),
    ("a star", "A star is a very big ball of hot gas, far away in the sky.", ""),
    ("a river", "A river is water that flows through the land to a lake or to the sea.", ""),
    ("a lake", "A lake is a lot of water with land all around it.", ""),
    ("the sea", "The sea is a very big body of salt water.", "blue"),
    ("a mountain", "A mountain is a very high piece of land.", ""),
    ("a forest", "A forest is a place with very many trees.", "green"),
    ("a desert", "A desert is a very dry place where few plants grow.", ""),
    ("an island", "An island is land with water all around it.", ""),
    ("a tree", "A tree is a tall plant with a trunk, branches, and leaves.", ""),
    ("a flower", "A flower is the colorful part of a plant.", ""),
    ("rain", "Rain is water that falls from the clouds.", ""),
    ("snow", "Snow is frozen water that falls from the clouds.", "white"),
    ("ice", "Ice is frozen water.", ""),
    ("wind", "Wind is air that moves.", ""),
    ("a cloud", "A cloud is made of many tiny drops of water or ice in the sky.", "white or gray"),
    ("a rainbow", "A rainbow is a bow of many colors that we see when the sun shines on rain.", ""),
    ("grass", "Grass is a plant with thin leaves that covers the ground.", "green"),
    ("a volcano", "A volcano is a mountain that hot rock can come out of.", ""),
)  # fmt: skip

JOBS = (
    Job("baker", "makes bread and cakes", "in a bakery"),
    Job("teacher", "helps people learn", "in a school"),
    Job("doctor", "helps sick people", "in a hospital"),
    Job("nurse", "takes care of sick people", "in a hospital"),
    Job("farmer", "grows food and keeps animals", "on a farm"),
    Job("cook", "makes meals", "in a kitchen"),
    Job("pilot", "flies planes", "in a plane"),
    Job("firefighter", "puts out fires and saves people", "at a fire station"),
    Job("gardener", "takes care of plants", "in a garden"),
    Job("fisherman", "catches fish", "on a boat"),
    Job("painter", "paints pictures or walls", "in a studio or a house"),
    Job("carpenter", "makes things from wood", "in a workshop"),
    Job("librarian", "takes care of books", "in a library"),
    Job("programmer", "writes programs for computers", "in an office"),
    Job("astronaut", "flies into space", "in a spaceship"),
    Job("driver", "drives a car, a bus, or a truck", "on the road"),
)
