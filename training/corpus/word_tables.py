"""Tables of words: categories, Chinese words, rhymes, sentences, instructions, and small programs."""

# Tables with one row in a line, however long.
# ruff: noqa: E501, SIM905

from __future__ import annotations

# The category in the singular and in the plural, and its members.
CATEGORIES = (
    ("animal", "animals", "cat dog horse cow lion rabbit bear fox sheep monkey tiger mouse"),
    ("fruit", "fruits", "apple banana orange pear cherry grape lemon peach plum mango"),
    ("vegetable", "vegetables", "carrot potato onion tomato cabbage cucumber pumpkin bean"),
    ("color", "colors", "red blue green yellow black white orange purple pink brown"),
    ("vehicle", "vehicles", "car bus train boat plane bicycle truck ship"),
    ("piece of clothing", "clothes", "hat coat shirt sock shoe scarf dress glove"),
    ("tool", "tools", "hammer saw knife brush shovel ladder screwdriver"),
    ("bird", "birds", "duck owl eagle penguin parrot swan chicken robin"),
    ("job", "jobs", "baker teacher doctor nurse farmer cook pilot painter"),
    ("drink", "drinks", "water tea milk coffee juice lemonade cocoa"),
    ("sport", "sports", "football tennis swimming running basketball skiing cycling"),
    ("country", "countries", "France Italy Spain Germany China Japan Brazil Canada Egypt India"),
    ("city", "cities", "Paris Rome London Berlin Madrid Tokyo Beijing Cairo Vienna Oslo"),
    ("room", "rooms", "kitchen bedroom bathroom office cellar hall"),
    ("insect", "insects", "bee ant butterfly fly beetle mosquito"),
    ("flower", "flowers", "rose tulip lily daisy sunflower violet"),
    ("instrument", "instruments", "piano guitar violin flute drum trumpet"),
)  # fmt: skip

CHINESE = (
    ("cat", "猫"), ("dog", "狗"), ("fish", "鱼"), ("bird", "鸟"), ("horse", "马"), ("cow", "牛"), ("sheep", "羊"),
    ("pig", "猪"), ("chicken", "鸡"), ("duck", "鸭子"), ("tiger", "老虎"), ("rabbit", "兔子"), ("water", "水"),
    ("fire", "火"), ("tea", "茶"), ("milk", "牛奶"), ("bread", "面包"), ("rice", "米饭"), ("egg", "鸡蛋"), ("apple", "苹果"),
    ("banana", "香蕉"), ("orange", "橙子"), ("flower", "花"), ("tree", "树"), ("mountain", "山"), ("river", "河"),
    ("sea", "海"), ("sun", "太阳"), ("moon", "月亮"), ("star", "星星"), ("sky", "天空"), ("rain", "雨"), ("snow", "雪"),
    ("wind", "风"), ("house", "房子"), ("door", "门"), ("table", "桌子"), ("chair", "椅子"), ("bed", "床"), ("book", "书"),
    ("car", "汽车"), ("train", "火车"), ("plane", "飞机"), ("boat", "船"), ("school", "学校"), ("teacher", "老师"),
    ("friend", "朋友"), ("mother", "妈妈"), ("father", "爸爸"), ("child", "孩子"), ("person", "人"), ("hand", "手"),
    ("red", "红色"), ("blue", "蓝色"), ("green", "绿色"), ("white", "白色"), ("black", "黑色"), ("one", "一"), ("two", "二"),
    ("three", "三"), ("hello", "你好"), ("thank you", "谢谢"), ("goodbye", "再见"), ("today", "今天"), ("tomorrow", "明天"),
)  # fmt: skip

RHYMES = (
    ("cat", "hat"), ("dog", "fog"), ("house", "mouse"), ("tree", "bee"), ("sun", "run"), ("moon", "spoon"),
    ("star", "car"), ("rain", "train"), ("boat", "coat"), ("cake", "lake"), ("king", "ring"), ("light", "night"),
    ("day", "play"), ("ball", "wall"), ("fish", "dish"), ("sky", "fly"), ("snow", "go"), ("bear", "chair"),
    ("book", "cook"), ("bed", "red"),
)  # fmt: skip

SENTENCES = (
    ("boat", "The little boat is on the lake."), ("cat", "The cat sleeps on the warm chair."),
    ("dog", "My dog likes to run in the park."), ("tree", "A bird sings in the old tree."),
    ("sun", "The sun shines on the garden."), ("rain", "The rain falls on the roof."),
    ("book", "I read a good book in the evening."), ("house", "Our house has a red door."),
    ("river", "The river flows to the sea."), ("friend", "My friend helps me when I am sad."),
    ("bread", "The baker makes fresh bread every morning."), ("moon", "The moon is bright tonight."),
    ("school", "The children walk to school together."), ("snow", "The snow is white and cold."),
    ("train", "The train stops at the station."), ("flower", "She has a yellow flower in her hand."),
    ("happy", "The happy child laughs and jumps."), ("water", "Please give me a cup of water."),
    ("apple", "He eats a red apple."), ("mountain", "There is snow on the high mountain."),
    ("music", "We listen to music after dinner."), ("garden", "My mother grows carrots in the garden."),
    ("horse", "The brown horse eats grass."), ("window", "Please open the window."),
)  # fmt: skip

STEPS = (
    ("make tea", ("Boil some water.", "Put a tea bag in a cup.", "Pour the hot water into the cup.", "Wait three minutes and take out the tea bag.")),
    ("make a sandwich", ("Take two slices of bread.", "Put butter on them.", "Add cheese and tomato.", "Put the slices together.")),
    ("boil an egg", ("Boil water in a pot.", "Put the egg into the hot water.", "Wait eight minutes.", "Cool the egg in cold water.")),
    ("plant a seed", ("Fill a pot with earth.", "Put the seed into the earth.", "Give it some water.", "Put the pot in a bright place.")),
    ("wash my hands", ("Make your hands wet.", "Take some soap.", "Rub your hands for 20 seconds.", "Wash off the soap and dry your hands.")),
    ("make a salad", ("Wash the vegetables.", "Cut them into small pieces.", "Put them in a bowl.", "Add oil, vinegar, and a little salt.")),
    ("brush my teeth", ("Put toothpaste on the brush.", "Brush all your teeth for two minutes.", "Rinse your mouth with water.", "Clean the brush.")),
    ("write a letter", ("Write the date.", "Greet the person.", "Write what you want to say.", "Sign with your name.")),
    ("make lemonade", ("Press the juice out of two lemons.", "Add cold water.", "Add some sugar.", "Stir it well.")),
    ("clean my room", ("Pick up your things.", "Put everything in its place.", "Wipe off the dust.", "Clean the floor.")),
    ("paint a wall", ("Cover the floor.", "Clean the wall.", "Put on the paint with a roller.", "Let it dry.")),
    ("make coffee", ("Boil some water.", "Put ground coffee in a filter.", "Pour the hot water over it slowly.", "Serve it in a cup.")),
    ("learn new words", ("Choose five new words.", "Write each word on a card.", "Read the cards every day.", "Use the words in a sentence.")),
    ("cook rice", ("Wash the rice.", "Put one cup of rice and two cups of water in a pot.", "Let it boil.", "Cook it on low heat until the water is gone.")),
)  # fmt: skip

PROGRAMS = (
    ("prints hello world", 'print("Hello, world!")', "It prints a greeting."),
    ("adds two numbers", "def add(a, b):\n    return a + b", "It returns the sum of a and b."),
    ("subtracts two numbers", "def subtract(a, b):\n    return a - b", "It returns a minus b."),
    ("multiplies two numbers", "def multiply(a, b):\n    return a * b", "It returns the product of a and b."),
    ("counts to 10", "for number in range(1, 11):\n    print(number)", "It prints the numbers from 1 to 10."),
    ("checks if a number is even", "def is_even(number):\n    return number % 2 == 0", "It returns True for an even number."),
    ("greets a person by name", 'def greet(name):\n    return f"Hello, {name}!"', "It returns a greeting with the name."),
    ("reverses a text", "def reverse(text):\n    return text[::-1]", "It returns the text backwards."),
    ("finds the bigger of two numbers", "def bigger(a, b):\n    return max(a, b)", "It returns the bigger number."),
    ("adds the numbers in a list", "def total(numbers):\n    return sum(numbers)", "It returns the sum of the list."),
    ("squares a number", "def square(number):\n    return number * number", "It returns the number times itself."),
    ("counts the letters of a word", "def count_letters(word):\n    return len(word)", "It returns the number of letters."),
)  # fmt: skip

SIMPLE_WORDS = (
    "cat dog sun moon tree bird fish book house apple water bread chair table green happy river train cloud "
    "stone horse snow rain star boat lamp door window garden flower milk egg cup hat coat shoe ball cake king queen "
    "rabbit orange yellow banana carrot lemon tiger mouse winter summer friend school letter music bridge island "
    "morning kitchen pencil teacher mountain elephant children"
).split()

NAMES = (
    "Anna", "Tom", "Ben", "Lucy", "Sam", "Emma", "Max", "Mia", "Leo", "Lily", "Jack", "Nina", "Paul", "Sara", "David",
    "Ella", "Peter", "Julia", "Noah", "Rosa", "Clara", "Oscar", "Maria", "Ali", "Wei", "Hana", "Ivan", "Lena", "Omar",
    "Kate", "George", "Alice", "Henry", "Grace", "Daniel", "Sophie", "Mark", "Laura", "Simon", "Eva",
)  # fmt: skip
