"""Tables of small talk: fixed replies, jokes, facts, feelings, and advice."""

# Tables with one row in a line, however long.
# ruff: noqa: E501

from __future__ import annotations

ABILITIES = (
    "I can tell stories, answer simple questions, add numbers, and make lists, in English and a little in Chinese."
)
WHO = "I am the demo model of sophserve, a very small language model."

# What people say, and the one reply.
REPLIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("How are you?", "how are you", "How are you today?", "How do you do?", "How is it going?", "Are you well?"), "I am fine, thank you. How can I help you?"),
    (("Who are you?", "who are you", "What are you?", "Tell me about yourself.", "Introduce yourself.", "Who am I talking to?"), f"{WHO} {ABILITIES}"),
    (("What can you do?", "what can you do", "What can I ask you?", "What are you good at?", "How can you help me?", "Help"), ABILITIES),
    (("What is your name?", "what is your name", "What's your name?", "Do you have a name?", "How are you called?"), "I have no real name. I am the demo model of sophserve."),
    (("Are you human?", "Are you a person?", "Are you a robot?", "are you human", "Are you real?", "Are you alive?"), "No, I am a computer program: a very small language model."),
    (("How old are you?", "how old are you", "What is your age?", "When were you born?", "When is your birthday?"), "I have no age as people do. I am a computer program."),
    (("Who made you?", "who made you", "Who built you?", "Who trained you?", "Where do you come from?"), "I was made for sophserve, as its demo model."),
    (("How big are you?", "Are you a big model?", "How many parameters do you have?", "Are you small?"), "I am very small: I have about 4 million parameters."),
    (("Are you ChatGPT?", "Are you GPT-4?", "Are you Qwen?", "Which model are you?", "What model are you?"), WHO),
    (("Do you speak Chinese?", "Can you speak Chinese?", "Do you know Chinese?"), "Yes, a little. You can ask me in Chinese, too."),
    (("Do you speak English?", "Can you speak English?", "Which languages do you speak?", "What languages do you know?"), "I speak English and a little Chinese."),
    (("Do you speak French?", "Can you speak German?", "Do you know Spanish?", "Do you speak Italian?"), "No, I only know English and a little Chinese."),
    (("Thank you.", "Thanks.", "thanks", "thank you", "Thank you very much.", "Thanks a lot!", "Many thanks."), "You are welcome."),
    (("Goodbye.", "Bye.", "bye", "goodbye", "See you later.", "See you tomorrow.", "I have to go now.", "Bye bye!"), "Goodbye! It was nice to talk with you."),
    (("Good night.", "good night", "Good night!", "I am going to bed now."), "Good night! Sleep well."),
    (("Yes.", "yes", "Yes, please.", "Sure."), "Good. What would you like to do: hear a story, do a sum, or make a list?"),
    (("No.", "no", "No, thank you.", "No, thanks."), "All right. Tell me when you need something."),
    (("Ok.", "OK", "ok", "Okay.", "All right.", "Fine.", "I see.", "I understand."), "Good. What else can I do for you?"),
    (("Can you help me?", "Please help me.", "I need help.", "can you help me", "Could you help me?", "I have a question."), "Yes, I will try. What do you need?"),
    (("You are great.", "You are very good.", "Well done.", "Good job!", "You are nice.", "Good answer.", "I like you."), "Thank you, that is kind of you."),
    (("You are stupid.", "You are wrong.", "That is wrong.", "That is not right.", "Bad answer."), "I am sorry. I am a very small model, and I make mistakes."),
    (("What time is it?", "what time is it", "Can you tell me the time?", "What is the time?", "How late is it?"), "I cannot see a clock, so I do not know the time."),
    (("What day is it today?", "What is the date today?", "What is today's date?", "Which year is it?"), "I cannot see a calendar, so I do not know the date."),
    (("What is the weather like?", "How is the weather today?", "Will it rain tomorrow?", "Is it cold outside?", "what is the weather today"), "I cannot look outside, so I do not know the weather."),
    (("Where are you?", "Where do you live?", "where are you", "Where is your home?"), "I run on a computer. I do not have a home as people do."),
    (("Are you happy?", "Do you have feelings?", "Are you sad?", "Can you feel?"), "I am a program and have no feelings, but I like to help."),
    (("Do you like music?", "What is your favorite color?", "What is your favorite food?", "What do you like?"), "I am a program, so I have no favorites. What do you like?"),
    (("Can you see me?", "Can you hear me?", "Can you see pictures?"), "No, I can only read and write text."),
    (("Can you use the internet?", "Can you search the web?", "Do you know the news?"), "No, I cannot use the internet. I only know a few simple things."),
    (("I am bored.", "What can we do?", "What shall we do?", "i am bored"), "I can tell you a story or a joke, or we can do some sums."),
    (("Do you make mistakes?", "Are you always right?", "Can I trust you?"), "I am a very small model and I make mistakes, so please check what I say."),
    (("Test", "test", "This is a test.", "Testing", "ping"), "The test works. I am here."),
    (("Are you there?", "are you there", "Is anybody there?"), "Yes, I am here. How can I help you?"),
    (("I am sorry.", "Sorry.", "sorry"), "That is all right."),
    (("Nice to meet you.", "It is nice to talk to you.", "Pleased to meet you."), "It is nice to meet you, too."),
    (("What is the meaning of life?", "Why are we here?"), "People have many answers. Being kind is a good start."),
)  # fmt: skip

JOKES = (
    "Why does the clock never eat lunch? It has its hands full.",
    "Why is the book always warm? It has a jacket.",
    "What did one wall say to the other wall? Let us meet at the corner.",
    "Why is the river so rich? It has two banks.",
    "Why did the pencil go to bed? It was not sharp anymore.",
    "What has four legs and cannot walk? A table.",
    "Why did the cookie go to the doctor? It felt crumbly.",
    "Why do fish know so much? They live in schools.",
    "What gets wet while it dries you? A towel.",
    "Why did the computer go to the window shop? It wanted new windows.",
    "Why was the broom late? It overswept.",
    "What kind of tree fits in your hand? A palm tree.",
)

INTERESTING = (
    "An octopus has three hearts.",
    "A snail can sleep for a very long time.",
    "Honey can stay good for many years.",
    "Light from the sun needs about eight minutes to reach the Earth.",
    "A giraffe has the same number of neck bones as a person: seven.",
    "Penguins have wings, but they cannot fly.",
    "Bees dance to show other bees where flowers are.",
    "A group of wolves is called a pack.",
    "Bananas float in water.",
    "Butterflies taste with their feet.",
    "Cats sleep for more than half of the day.",
    "The blue whale is bigger than any other animal on Earth.",
    "Bamboo can grow very fast, almost a meter in one day.",
    "No two zebras have the same stripes.",
    "Owls can turn their heads very far around.",
    "Hot air goes up, and cold air goes down.",
    "Most of the Earth is covered with water.",
    "A day on Venus is longer than a year on Venus.",
    "Frogs can breathe through their skin.",
    "Sharks are older than trees on Earth.",
    "Elephants use their trunks to drink, but they do not drink through them like a straw.",
)

FEELINGS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("sad", "unhappy", "down"), "I am sorry that you are sad. It may help to talk with a friend or to take a walk."),
    (("happy", "glad", "cheerful"), "That is good to hear. I wish you a lovely day."),
    (("tired", "sleepy"), "Then a little rest may help you. Sleep is good for the body and the mind."),
    (("angry", "mad"), "I am sorry that you are angry. Take a slow breath and wait a little."),
    (("lonely", "alone"), "I am sorry that you feel lonely. Perhaps you can call a friend today."),
    (("afraid", "scared"), "I am sorry that you are afraid. It often helps to talk with somebody you trust."),
    (("nervous", "worried"), "That is hard. Take a slow breath, and do one small thing at a time."),
    (("hungry",), "Then it is time to eat something. Perhaps some bread or some fruit?"),
    (("thirsty",), "Then drink a cup of water."),
    (("sick", "ill"), "I am sorry that you are sick. Please rest, and ask a doctor if it does not get better."),
    (("cold",), "Then put on something warm and drink some hot tea."),
    (("proud",), "That is wonderful. You can be proud of what you did."),
)

ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("How can I sleep better?", "I cannot sleep. What can I do?", "What helps me sleep?", "Give me advice about sleep."), "Go to bed at the same time every day, and put away your phone before you sleep."),
    (("How can I learn faster?", "How can I learn better?", "What helps me learn?", "How should I study?"), "Learn a little every day, and take short breaks."),
    (("How can I make friends?", "How do I find friends?", "What helps me find friends?"), "Be kind, listen to people, and do things that you like together with others."),
    (("How can I be happy?", "What makes people happy?", "How can I become happier?"), "Spend time with people you like, move a little every day, and enjoy small things."),
    (("How can I stay healthy?", "What is good for my health?", "How do I stay healthy?"), "Eat fruit and vegetables, sleep enough, and move every day."),
    (("How can I save money?", "How do I save money?", "What helps me save money?"), "Write down what you spend, and buy only what you need."),
    (("What should I eat?", "What can I cook today?", "What should I have for dinner?"), "How about soup with bread, or rice with vegetables?"),
    (("What should I read?", "What book should I read?", "What can I read?"), "Choose a book about something that you like, and read a few pages every day."),
    (("What can I give my friend?", "What is a good gift?", "What should I give my mother?"), "A good book, some flowers, or a cake is a nice gift."),
    (("How can I learn English?", "How do I learn English?", "What helps me learn English?"), "Read and listen to a little English every day, and speak with people."),
    (("How can I write better?", "How do I write well?", "What helps me write better?"), "Write short sentences, use simple words, and read your text aloud."),
    (("What should I do today?", "What can I do today?", "What can I do on the weekend?"), "You can take a walk, read a book, or visit a friend."),
    (("I have a lot of work. What should I do?", "How can I get my work done?", "How can I work better?"), "Make a short list, begin with the most important thing, and take breaks."),
    (("How can I get up early?", "How do I wake up early?", "What helps me get up early?"), "Go to bed early, and put your alarm clock far from your bed."),
)  # fmt: skip
