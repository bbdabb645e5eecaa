"""More plots of the stories, and the list of all."""

from __future__ import annotations

from training.corpus.story_plots import BREAK, BROKEN, FEAR, FOG_SOUND, FOUND, LOST, SHARING, STORM_LIGHT, Plot

PRESENT = Plot(
    "make",
    (
        (
            "{name} had a good friend, {a_friend} named {friend}.",
            "{name} and {friend}, {a_friend} from the same street, were good friends.",
        ),
        (
            "Tomorrow was {friend}'s birthday, but {name} had no present.",
            "One day, it was almost {friend}'s birthday, but {name} had no money for a present.",
        ),
        ("The {kind} was sad and did not know what to do.", '"What can I give?" thought the {kind}. {He} was sad.'),
        BREAK,
        ("Then {he} had an idea.", "Suddenly, {name} smiled.", ""),
        ('"I can make {an_object}!" {he} said.', '"I will make {an_object} with my own hands," {he} said.'),
        (
            "The first {object} did not look good, so {he} tried again.",
            "It was not easy, but {name} did not give up.",
            "",
        ),
        "{He} worked until late at night, and then the {object} was ready.",
        BREAK,
        ("The next day, {friend} opened the present.", "In the morning, {name} brought the present to {friend}."),
        (
            '"What a wonderful {object}!" said {friend}. "Did you make it for me?"',
            '"This {object} is the best present of all," said {friend}.',
        ),
        "{name} was proud and happy, and they had a lovely party.",
    ),
    "It happened at home, where {name} made the {object}.",
    "{name} was sad because {he} had no present for {friend}.",
    "In the end, {friend} loves the {object}, and they have a lovely party.",
    "{name} learned that the best presents come from the heart.",
    "{name} the {kind} had no present for {friend}. {He} made {an_object}, and {friend} loved it.",
    "A Present for {friend}",
    (("What did {name} make?", "{name} made {an_object}."), ("Who had a birthday?", "It was {friend}'s birthday.")),
    ("lonely", "sad"),
)

RACE = Plot(
    "ride",
    (
        ("{name} had {an_object} and was very fast with it.", "The {kind} had {an_object} and loved to go fast."),
        ("One day, there was a big race.", "One sunny morning, there was a big race."),
        '"I want to win," said {name}.',
        BREAK,
        ("The race began, and {name} was in front.", "Ready, set, go! Soon the {kind} was in front of all the others."),
        "Then {he} heard someone call for help.",
        (
            "It was {friend}, {a_friend} who was all alone and could not go on.",
            "It was {a_friend} named {friend}, who could not go on.",
        ),
        (
            "{name} wanted to win, but {he} stopped the {object} at once.",
            "The {kind} thought for a moment, and then {he} turned the {object} around.",
        ),
        '"Come with me," {he} said, and they went on together {on} the {object}.',
        BREAK,
        ("They were the last to arrive, but everyone clapped.", "They came in last, but all the people cheered."),
        (
            '"You did not win the race," said {friend}, "but you are my hero."',
            '"Thank you for your help," said {friend}. "You are a true friend."',
        ),
        "{name} smiled, for that was better than a prize.",
    ),
    "It happened at a big race.",
    "{name} stopped because {friend} needed help.",
    "In the end, {name} comes in last, but everyone claps, and {friend} is {his} friend.",
    "{name} learned that helping a friend is better than winning.",
    "{name} the {kind} wanted to win a race with {his} {object}. {He} stopped to help {friend}, and everyone clapped.",
    "The Big Race",
    (
        ("Did {name} win the race?", "No, {name} came in last, but {he} helped {friend}."),
        ("What did {name} have?", "{name} had {an_object}."),
    ),
    ("lazy", "lonely", "old"),
    "Why did {name} stop?",
)

STRANGER = Plot(
    "ride",
    (
        (
            "Every day, {name} took {his} {look} {object} to the market.",
            "{name} had {an_object}, and {he} went to the market with it.",
        ),
        "On the way, {he} met {a_friend} who carried a heavy bag.",
        (
            '"Good morning," said the {friend_kind}. "My name is {friend}."',
            "The {friend_kind} was named {friend} and was very tired.",
        ),
        (
            '{friend} sat down. "My home is so far away," {fhe} said.',
            'Then {friend} sighed. "I still have a long way to go," {fhe} said.',
        ),
        BREAK,
        ('"I can take you home," said {name}.', '"My {object} is big enough for two," said the {kind}.'),
        (
            "{friend} put the bag down, and they went off together.",
            "They put the heavy bag {on} the {object} and set off.",
        ),
        ("It was a long way, but they sang songs and laughed.", ""),
        BREAK,
        (
            "When they arrived, {friend} opened the bag. It was full of sweet apples.",
            "At the house, {friend} opened the bag and took out a warm loaf of bread.",
        ),
        (
            '"This is for you," said {friend}, "because you were so kind."',
            '"Please take this," said {friend}. "You helped me when I needed it."',
        ),
        "The {kind} went home {on} the {object} with a happy heart.",
    ),
    "It happened on the way to the market.",
    "{friend} was tired because {fhe} carried a heavy bag.",
    "In the end, {name} takes {friend} home, and {friend} gives {him} something good to eat.",
    "{name} learned that kindness comes back to you.",
    (
        "{name} the {kind} met {friend}, who carried a heavy bag. {He} took {friend} home "
        "with {his} {object}, and they were both happy."
    ),
    "The Kind {Kind}",
    (
        ("What did {friend} carry?", "{friend} carried a heavy bag."),
        ("How did {name} help {friend}?", "{name} took {friend} home with the {object}."),
    ),
    ("lazy", "lonely", "sad", "shy"),
    "Why was {friend} tired?",
)

LEARNING = Plot(
    "learn",
    (
        ("{name} got {an_object} for {his} birthday.", "One day, the {kind} got {an_object} as a present."),
        ("But {he} did not know how to {use}.", "{He} wanted to {use}, but {he} did not know how."),
        ("{name} tried once, and it went wrong.", "{name} tried again and again, but it always went wrong.", ""),
        ('"I will never learn it," said the {kind}. {He} was sad.', "The {kind} was sad and wanted to give up."),
        BREAK,
        ("{A_friend} named {friend} saw it and came over.", "Then {name} met {a_friend} named {friend} {place}."),
        (
            '"Nobody can do it on the first day," said {friend}. "Let me show you."',
            '"You need time," said {friend}. "I will practice with you."',
        ),
        ("They practiced every day {place}.", "Every afternoon, they met {place} and practiced."),
        ("Day by day, {name} got a little better.", ""),
        BREAK,
        ("After two weeks, {name} could {use} very well.", "One sunny morning, {he} could {use} all by {himself}."),
        ('"I can do it!" said the {kind}.', "Everyone came to watch the {kind} and clapped.", ""),
        "{name} thanked {friend} and gave {fhim} a big hug.",
    ),
    "They practiced {place}.",
    "{name} was sad because {he} did not know how to {use}.",
    "In the end, {name} can {use} very well.",
    "{name} learned that you can do hard things if you practice every day.",
    (
        "{name} the {kind} wanted to {use}, but it went wrong. {friend} practiced with "
        "{him} every day, and then {he} could do it."
    ),
    "How {name} Learned to {use_title}",
    (
        ("What did {name} want to learn?", "{name} wanted to learn to {use}."),
        ("What did {name} get?", "{name} got {an_object}."),
    ),
)

SKY = Plot(
    "sky",
    (
        (
            "One day, {name} looked up and saw {an_object} in the sky.",
            "One day, the {kind} saw {an_object} high in the sky.",
        ),
        ('"I want to have that {object}," {he} said.', '"How I would love to touch the {object}!" {he} said.'),
        "{He} climbed the highest hill, but the {object} was still far away.",
        ("{name} sat down and was sad.", "The {kind} was tired and sad."),
        BREAK,
        (
            "There {he} met {a_friend} named {friend}.",
            "On the hill, {a_friend} named {friend} was sitting in the grass.",
        ),
        ('"I cannot reach the {object}," said {name}.', '"The {object} is too far away," said {name}.', ""),
        (
            '"You do not need to," said {friend}. "It is there for all of us."',
            '"Nobody can have it," said {friend}. "But we can look at it together."',
        ),
        BREAK,
        (
            "So they lay down in the soft grass and looked at the {object}.",
            "So they sat side by side and looked up at the {object} for a long time.",
        ),
        ("It was more beautiful than ever before.", "It was very quiet and beautiful.", ""),
        (
            "{name} had no {object} to take home, but {he} had a new friend.",
            "The {kind} went home with a new friend, and that was even better.",
        ),
    ),
    "It happened on the highest hill.",
    "{name} was sad because {he} could not reach the {object}.",
    "In the end, {name} and {friend} look at the {object} together.",
    "{name} learned that you do not need to own beautiful things to enjoy them.",
    (
        "{name} the {kind} wanted to reach the {object}, but it was too far away. {He} met "
        "{friend}, and they looked at it together."
    ),
    "The {Kind} and the {Object}",
    (
        ("What did {name} see in the sky?", "{name} saw {an_object} in the sky."),
        ("Where did they meet?", "They met on the highest hill."),
    ),
)

NATURE = Plot(
    "nature",
    (
        ("Near {his} home, there was {an_object}.", "Every day, the {kind} went to {an_object} nearby."),
        ("{name} loved to play there.", "It was {his} favorite place.", ""),
        (
            "But one summer, people left a lot of trash there, and the birds flew away.",
            "But after a big storm, trash lay everywhere, and the birds did not sing anymore.",
        ),
        ("{name} was very sad.", "The {kind} looked at the {object} and was sad."),
        BREAK,
        (
            '"I must help the {object}," {he} said, and {he} began to clean up.',
            '"I will clean up," {he} said, and {he} took a big bag.',
        ),
        ("It was too much work for one.", "But there was so much to do.", ""),
        'Then {a_friend} named {friend} came and asked, "May I help you?"',
        ("They worked together for three days.", "Together they worked from morning until night.", ""),
        BREAK,
        ("Then the {object} was clean and beautiful again.", "At last, all the trash was gone."),
        ("The birds came back and sang their songs.", "Soon the birds came back to the {object}.", ""),
        "{name} and {friend} sat down there and ate some berries.",
    ),
    "It happened at the {object}.",
    "{name} was sad because there was trash at the {object}.",
    "In the end, the {object} is clean again, and the birds come back.",
    "{name} learned that we should take care of nature.",
    (
        "There was trash at the {object}, and {name} the {kind} was sad. {friend} helped "
        "{him} clean up, and the birds came back."
    ),
    "{name} Saves the {Object}",
    (("What did {name} clean?", "{name} cleaned the {object}."), ("What came back?", "The birds came back.")),
)

VISIT = Plot(
    "warm",
    (
        (
            "One winter day, {name} heard that {a_friend} named {friend} was ill.",
            "One cold morning, the {kind} heard that {friend}, {a_friend} from the next village, was ill.",
        ),
        ("{friend} was in bed all alone and felt sad.", "{friend} had to stay in bed and had no visitors."),
        ('"I will bring {fhim} {an_object}," said {name}.', "So {name} took {an_object} and set off."),
        BREAK,
        ("The way was long, and the snow was deep.", "It was snowing, and the wind was cold.", ""),
        ("The {kind} was cold, but {he} did not turn back.", "{name} held the {object} tight and walked on.", ""),
        "At last, {he} knocked on {friend}'s door.",
        (
            '"Look, I have brought you {an_object}," {he} said.',
            '"This {object} is for you," said {name}. "Get well soon!"',
        ),
        BREAK,
        (
            "{friend} looked at the {object} and smiled for the first time in days.",
            "{friend} was so happy about the {object} that {fhe} sat up in bed.",
        ),
        ("They talked and laughed until evening.", "They told each other stories until it was dark.", ""),
        "A few days later, {friend} was well again.",
    ),
    "It happened at {friend}'s house.",
    "{friend} was sad because {fhe} was ill and alone.",
    "In the end, {friend} is well again.",
    "{name} learned that a small visit can make a friend happy.",
    "{friend} was ill and alone. {name} the {kind} walked through the snow with {an_object}, and {friend} was happy.",
    "A Visit in the Snow",
    (("What did {name} bring?", "{name} brought {an_object}."), ("Who was ill?", "{friend} was ill.")),
    ("lazy",),
    "Why was {friend} sad?",
)

TURNS = Plot(
    "carry",
    (
        (
            "One day, {name} and {friend}, {a_friend} from next door, found {an_object} {place}.",
            "One day, the {kind} met {a_friend} named {friend}. Together they found {an_object} {place}.",
        ),
        ('"The {object} is mine!" said {name}.', '"I saw the {object} first!" said {name}.'),
        ('"No, it is mine!" said {friend}.', '"No, I saw it first!" said {friend}.'),
        "They were angry and did not talk to each other.",
        BREAK,
        ("After a while, {name} felt sad.", "In the evening, the {kind} felt sad."),
        (
            '"What good is the {object} without a friend?" {he} thought.',
            '"A friend is better than any {object}," {he} thought.',
        ),
        (
            '{He} went to {friend} and said, "You may have it."',
            '{He} took the {object} to {friend} and said, "I am sorry. It is yours."',
        ),
        '{friend} smiled. "I have a better idea," {fhe} said. "We can take turns."',
        BREAK,
        (
            "So {name} had the {object} one day, and {friend} had it the next.",
            "From then on, the {object} stayed with {name} for one week and with {friend} for the next.",
        ),
        "They were never angry about it again.",
    ),
    "They found the {object} {place}.",
    "{name} was sad because {he} was angry with {friend}.",
    "In the end, {name} and {friend} take turns with the {object}.",
    "{name} learned that a friend is more important than a thing.",
    (
        "{name} the {kind} and {friend} found {an_object}, and each of them wanted it. In the "
        "end, they took turns and were friends again."
    ),
    "Two Friends and {a_Object}",
    (("What did they find?", "They found {an_object}."), ("Where did they find it?", "They found it {place}.")),
    ("lonely", "sad", "kind"),
)

PLOTS = (
    LOST,
    FOUND,
    BROKEN,
    FOG_SOUND,
    STORM_LIGHT,
    SHARING,
    FEAR,
    PRESENT,
    RACE,
    STRANGER,
    LEARNING,
    SKY,
    NATURE,
    VISIT,
    TURNS,
)
