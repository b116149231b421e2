"""Wordings of the invented facts: twelve kinds of passages, each with sentences and questions for its facts.

In every wording {e} is the entity and {v} the value that is asked for. A fact is (kind of value, sentences, questions).
"""

from __future__ import annotations

from dataclasses import dataclass

Fact = tuple[str, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Shape:
    """One kind of passage: how it opens and closes, what its entities are, and the facts that each may have."""

    entity: str
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    facts: tuple[Fact, ...]


_BORN: Fact = (
    "town",
    (
        "{e} was born in {v}, where the family kept a small house.",
        "The birthplace of {e} is {v}.",
        "{e} comes from {v} and still writes home every month.",
    ),
    ("Where was {e} born?", "What is the birthplace of {e}?", "Which town does {e} come from?"),
)
_CRAFT: Fact = (
    "craft",
    (
        "For most of a long life {e} worked as a {v}.",
        "{e} earned a living as a {v}.",
        "By trade {e} was a {v}, and was proud of it.",
    ),
    ("What was the trade of {e}?", "How did {e} earn a living?", "What did {e} work as?"),
)

SHAPES: tuple[Shape, ...] = (
    Shape(
        "person",
        (
            "The register of the parish of {p} names several people of those years.",
            "Old letters kept in {p} tell of its people.",
            "A plaque in {p} remembers a handful of residents.",
        ),
        (
            "The rest of the register was lost in a flood.",
            "Nothing more is written about them.",
            "Visitors may read the pages on request.",
        ),
        (
            _BORN,
            _CRAFT,
            (
                "year",
                (
                    "In {v}, {e} moved into the house beside the mill.",
                    "{e} settled in the parish in {v}.",
                    "The name of {e} first appears in {v}.",
                ),
                ("When did {e} arrive?", "In which year does {e} first appear?", "What year did {e} settle there?"),
            ),
        ),
    ),
    Shape(
        "ship",
        (
            "Several vessels lay in the harbour of {p} that winter.",
            "The harbour master of {p} kept a careful book of ships.",
            "Three ships are shown on the old painting of {p}.",
        ),
        (
            "All of them left before the ice came.",
            "The book was closed in spring.",
            "The painting hangs in the town hall today.",
        ),
        (
            (
                "cargo",
                (
                    "The hold of the {e} was filled with {v}.",
                    "Sailors unloaded {v} from the {e}.",
                    "The {e} carried {v} to the southern ports.",
                ),
                ("What did the {e} carry?", "What was the cargo of the {e}?", "What was in the hold of the {e}?"),
            ),
            (
                "person",
                (
                    "The captain of the {e} was called {v}.",
                    "{v} commanded the {e} on every voyage.",
                    "On the bridge of the {e} stood {v}.",
                ),
                (
                    "Who commanded the {e}?",
                    "Who was the captain of the {e}?",
                    "What was the name of the captain of the {e}?",
                ),
            ),
            (
                "colour",
                (
                    "The hull of the {e} was painted {v}.",
                    "From afar one knew the {e} by its {v} hull.",
                    "Below the rail the {e} was {v}.",
                ),
                (
                    "What colour was the hull of the {e}?",
                    "In which colour was the {e} painted?",
                    "What colour was the {e}?",
                ),
            ),
        ),
    ),
    Shape(
        "company",
        (
            "The valley of {p} was known for its workshops.",
            "Trade in {p} rested on a few small firms.",
            "A report on the economy of {p} lists its companies.",
        ),
        (
            "Together they employed half of the valley.",
            "None of them was ever sold.",
            "The report was reprinted twice.",
        ),
        (
            (
                "product",
                ("The firm {e} made {v}.", "{e} was known far away for its {v}.", "Customers came to {e} for {v}."),
                ("What did {e} make?", "What was {e} known for?", "What did customers buy from {e}?"),
            ),
            (
                "person",
                (
                    "{e} was founded by {v}.",
                    "It was {v} who started {e} in a rented barn.",
                    "The founder of {e} was {v}.",
                ),
                ("Who founded {e}?", "Who was the founder of {e}?", "Who started {e}?"),
            ),
            (
                "number",
                (
                    "At its height {e} had {v} workers.",
                    "The payroll of {e} once listed {v} names.",
                    "{e} employed {v} people in its best year.",
                ),
                (
                    "How many workers did {e} have?",
                    "How many people did {e} employ?",
                    "How many names were on the payroll of {e}?",
                ),
            ),
        ),
    ),
    Shape(
        "person",
        (
            "An expedition left {p} early in the spring.",
            "The mountaineers of {p} planned the climb for years.",
            "Few journeys from {p} were prepared so well.",
        ),
        (
            "They came back after eleven weeks.",
            "The tents were left behind on the ridge.",
            "A second attempt was never made.",
        ),
        (
            (
                "tool",
                (
                    "{e} carried the {v} all the way.",
                    "The {v} was in the care of {e}.",
                    "Nobody but {e} was allowed to touch the {v}.",
                ),
                ("What did {e} carry?", "What was in the care of {e}?", "What was {e} responsible for?"),
            ),
            _BORN,
            (
                "animal",
                (
                    "At home {e} kept a {v}.",
                    "{e} spoke of little but a tame {v}.",
                    "Everyone had heard of the {v} that belonged to {e}.",
                ),
                ("Which animal did {e} keep?", "What animal belonged to {e}?", "What pet did {e} have?"),
            ),
        ),
    ),
    Shape(
        "object",
        (
            "The small museum of {p} shows a few treasures.",
            "A single room in {p} holds the whole collection.",
            "The catalogue of the museum in {p} has only four pages.",
        ),
        ("The museum is open on Sundays.", "Entrance is free for children.", "Photographs are not allowed."),
        (
            (
                "material",
                ("{e} is made of {v}.", "Craftsmen shaped {e} from {v}.", "For {e} nothing but {v} was used."),
                ("What is {e} made of?", "Which material was used for {e}?", "From what was {e} shaped?"),
            ),
            (
                "person",
                ("{v} gave {e} to the museum.", "{e} was a gift of {v}.", "The collection owes {e} to {v}."),
                ("Who gave {e} to the museum?", "Whose gift was {e}?", "To whom does the collection owe {e}?"),
            ),
            (
                "year",
                ("{e} was found in {v}.", "Workers dug up {e} in {v}.", "Since {v}, {e} has been on display."),
                (
                    "When was {e} found?",
                    "In what year does the story of {e} in the museum begin?",
                    "Which year is given for {e}?",
                ),
            ),
        ),
    ),
    Shape(
        "person",
        (
            "The school of {p} had devoted teachers.",
            "Former pupils in {p} like to talk about their teachers.",
            "The yearbook of the school in {p} lists its staff.",
        ),
        (
            "The school was closed when the railway came.",
            "A reunion is held every ten years.",
            "Their portraits hang in the hall.",
        ),
        (
            (
                "subject",
                ("{e} taught {v}.", "Pupils learned {v} from {e}.", "The lessons of {e} were in {v}."),
                ("What did {e} teach?", "Which subject was taught by {e}?", "What did pupils learn from {e}?"),
            ),
            (
                "colour",
                (
                    "{e} always wore a {v} coat.",
                    "One knew {e} by a {v} coat.",
                    "In winter and summer {e} came in a coat of {v}.",
                ),
                ("What colour was the coat of {e}?", "Which colour did {e} wear?", "In what colour did {e} dress?"),
            ),
            (
                "instrument",
                (
                    "In the evening {e} played the {v}.",
                    "{e} was also a master of the {v}.",
                    "At parties {e} was asked to play the {v}.",
                ),
                (
                    "Which instrument did {e} play?",
                    "What did {e} play in the evening?",
                    "Of which instrument was {e} a master?",
                ),
            ),
        ),
    ),
    Shape(
        "place",
        (
            "Travellers through {p} usually pass several villages.",
            "The guidebook to the region of {p} recommends some stops.",
            "Along the river near {p} lie old settlements.",
        ),
        ("The road is closed in winter.", "A bus runs twice a day.", "The guidebook gives no prices."),
        (
            (
                "product",
                ("{e} is famous for its {v}.", "People visit {e} to buy {v}.", "Every house in {e} sells {v}."),
                ("What is {e} famous for?", "What do people buy in {e}?", "What is sold in {e}?"),
            ),
            (
                "number",
                (
                    "{e} has {v} inhabitants.",
                    "No more than {v} people live in {e}.",
                    "The last count found {v} people in {e}.",
                ),
                (
                    "How many inhabitants does {e} have?",
                    "How many people live in {e}?",
                    "What was the last count of people in {e}?",
                ),
            ),
            (
                "building",
                (
                    "In the middle of {e} stands a {v}.",
                    "The pride of {e} is its {v}.",
                    "Nobody leaves {e} without seeing the {v}.",
                ),
                (
                    "What stands in the middle of {e}?",
                    "What is the pride of {e}?",
                    "Which building do visitors see in {e}?",
                ),
            ),
        ),
    ),
    Shape(
        "person",
        (
            "The inventors of {p} met every Thursday.",
            "Patents from {p} fill a whole shelf.",
            "A society in {p} collects the papers of local inventors.",
        ),
        ("Few of these things were ever sold.", "The society still exists.", "The shelf was moved to the archive."),
        (
            (
                "tool",
                ("{e} invented a new kind of {v}.", "A better {v} was the work of {e}.", "The {v} of {e} won a medal."),
                ("What did {e} invent?", "What was the work of {e}?", "For what did {e} win a medal?"),
            ),
            (
                "year",
                (
                    "{e} received the patent in {v}.",
                    "The papers of {e} are dated {v}.",
                    "In {v} the idea of {e} was first shown.",
                ),
                (
                    "In which year did {e} show the idea or get the patent?",
                    "What is the date of the papers of {e}?",
                    "Which year belongs to {e}?",
                ),
            ),
            _CRAFT,
        ),
    ),
    Shape(
        "team",
        (
            "The league of {p} had its closest season in years.",
            "Sport in {p} means three clubs above all.",
            "The newspaper of {p} reviewed its clubs.",
        ),
        ("The final was played in the rain.", "Tickets cost two coins.", "The season ended in June."),
        (
            (
                "animal",
                ("The badge of {e} shows a {v}.", "A {v} is the emblem of {e}.", "Fans of {e} wave flags with a {v}."),
                ("Which animal is on the badge of {e}?", "What is the emblem of {e}?", "What is on the flags of {e}?"),
            ),
            (
                "person",
                ("{e} is coached by {v}.", "The coach of {e} is {v}.", "For ten years {v} has trained {e}."),
                ("Who coaches {e}?", "Who is the coach of {e}?", "Who has trained {e}?"),
            ),
            (
                "number",
                ("{e} scored {v} goals.", "The total of {e} was {v} goals.", "With {v} goals, {e} surprised everyone."),
                ("How many goals did {e} score?", "What was the goal total of {e}?", "How many goals did {e} have?"),
            ),
        ),
    ),
    Shape(
        "person",
        (
            "The market of {p} opens before dawn.",
            "On market days the square of {p} is full.",
            "Some stalls in {p} have stood for generations.",
        ),
        ("By noon everything is sold.", "The square is swept at two.", "Prices have not changed for years."),
        (
            (
                "cargo",
                ("{e} sells {v}.", "The stall of {e} is piled with {v}.", "For {v} one goes to {e}."),
                ("What does {e} sell?", "What is on the stall of {e}?", "What does one buy from {e}?"),
            ),
            (
                "colour",
                (
                    "Over the stall of {e} hangs a {v} cloth.",
                    "The awning of {e} is {v}.",
                    "{e} sits under a {v} umbrella.",
                ),
                (
                    "What colour is the cloth, awning or umbrella of {e}?",
                    "Which colour belongs to the stall of {e}?",
                    "What colour does one see at the stall of {e}?",
                ),
            ),
            (
                "town",
                (
                    "{e} travels from {v} every week.",
                    "The cart of {e} comes from {v}.",
                    "It is a long way from {v}, but {e} never misses a day.",
                ),
                ("Where does {e} travel from?", "From which town does {e} come?", "Which town is the home of {e}?"),
            ),
        ),
    ),
    Shape(
        "object",
        (
            "The library of {p} owns some rare books.",
            "A scholar from {p} described the oldest manuscripts.",
            "The reading room in {p} keeps its best volumes locked away.",
        ),
        ("They may be read with gloves only.", "A copy of each exists.", "The key is kept by the director."),
        (
            (
                "person",
                ("{e} was written by {v}.", "The author of {e} is {v}.", "{v} finished {e} after a long illness."),
                ("Who wrote {e}?", "Who is the author of {e}?", "Who finished {e}?"),
            ),
            (
                "number",
                ("{e} has {v} pages.", "One counts {v} pages in {e}.", "The {v} pages of {e} are all preserved."),
                (
                    "How many pages does {e} have?",
                    "What is the number of pages in {e}?",
                    "How many pages of {e} are preserved?",
                ),
            ),
            (
                "colour",
                (
                    "{e} is bound in {v} leather.",
                    "The {v} binding of {e} is original.",
                    "A binding of {v} protects {e}.",
                ),
                ("What colour is the binding of {e}?", "In which colour is {e} bound?", "What colour protects {e}?"),
            ),
        ),
    ),
    Shape(
        "place",
        (
            "The old maps of {p} show its lakes.",
            "Around {p} the land is full of water.",
            "Geologists from {p} measured the lakes of the plateau.",
        ),
        (
            "Swimming is forbidden in all of them.",
            "The measurements took two summers.",
            "In dry years the shores retreat.",
        ),
        (
            (
                "number",
                (
                    "The lake of {e} is {v} metres deep.",
                    "Its {v} metres make the lake of {e} hard to sound.",
                    "At {v} metres one reaches the ground of the lake of {e}.",
                ),
                (
                    "How deep is the lake of {e}?",
                    "What depth was found at {e}?",
                    "How many metres deep is the water at {e}?",
                ),
            ),
            (
                "animal",
                (
                    "On the shore of {e} one may see the {v}.",
                    "The {v} nests at {e}.",
                    "{e} is the last home of the {v}.",
                ),
                ("Which animal lives at {e}?", "What may one see at {e}?", "Of which animal is {e} the home?"),
            ),
            (
                "person",
                ("{v} drew the first map of {e}.", "The first to measure {e} was {v}.", "{e} was described by {v}."),
                (
                    "Who mapped, measured or described {e}?",
                    "Whose work is the description of {e}?",
                    "Which person is linked with {e}?",
                ),
            ),
        ),
    ),
)

VALUES: dict[str, tuple[str, ...]] = {
    "craft": (
        "glassblower",
        "weaver",
        "clockmaker",
        "blacksmith",
        "baker",
        "printer",
        "tailor",
        "potter",
        "carpenter",
        "beekeeper",
        "surveyor",
        "cobbler",
        "gardener",
        "bookbinder",
        "fisherman",
        "stonemason",
    ),
    "cargo": (
        "salted herring",
        "wool",
        "copper plates",
        "dried figs",
        "lamp oil",
        "barley",
        "pine resin",
        "candles",
        "raw silk",
        "chestnuts",
        "rope",
        "black pepper",
        "tin buttons",
        "honey",
        "apples",
        "coal",
    ),
    "colour": (
        "dark green",
        "scarlet",
        "pale yellow",
        "violet",
        "white",
        "orange",
        "silver grey",
        "turquoise",
        "brown",
        "crimson",
        "sky blue",
        "black",
        "pink",
        "ivory",
        "golden",
        "olive",
    ),
    "product": (
        "umbrellas",
        "pocket knives",
        "goat cheese",
        "violins",
        "paper lanterns",
        "leather gloves",
        "plum jam",
        "porcelain cups",
        "fishing nets",
        "wooden toys",
        "wool blankets",
        "cider",
        "chess sets",
        "soap",
        "straw hats",
        "door locks",
    ),
    "tool": (
        "compass",
        "telescope",
        "barometer",
        "water pump",
        "sewing machine",
        "kite",
        "loom",
        "diving bell",
        "field kitchen",
        "signal lamp",
        "rope winch",
        "printing press",
        "thermometer",
        "plough",
        "snow saw",
        "sextant",
    ),
    "animal": (
        "heron",
        "badger",
        "otter",
        "falcon",
        "hedgehog",
        "lynx",
        "stork",
        "tortoise",
        "raven",
        "ibex",
        "beaver",
        "owl",
        "fox",
        "swan",
        "wolf",
        "salamander",
    ),
    "material": (
        "cherry wood",
        "bronze",
        "whalebone",
        "marble",
        "iron",
        "amber",
        "glass",
        "clay",
        "oak",
        "silver",
        "slate",
        "jade",
        "ivory",
        "brass",
        "granite",
        "walnut",
    ),
    "subject": (
        "geometry",
        "botany",
        "Latin",
        "drawing",
        "astronomy",
        "music",
        "history",
        "chemistry",
        "grammar",
        "geography",
        "needlework",
        "arithmetic",
        "logic",
        "rhetoric",
        "physics",
        "singing",
    ),
    "instrument": (
        "harp",
        "oboe",
        "accordion",
        "cello",
        "trumpet",
        "lute",
        "zither",
        "organ",
        "clarinet",
        "viola",
        "bagpipe",
        "flute",
        "mandolin",
        "drum",
        "horn",
        "piano",
    ),
    "building": (
        "water tower",
        "round chapel",
        "covered bridge",
        "stone granary",
        "bell tower",
        "wooden theatre",
        "windmill",
        "bath house",
        "clock tower",
        "brick kiln",
        "lighthouse",
        "market hall",
        "fountain",
        "castle gate",
        "observatory",
        "inn",
    ),
}
"""Kinds of values that are ordinary words. Persons, towns, years and numbers are made up for each passage."""

OBJECTS = ("the {n} Crown", "the {n} Chalice", "the {n} Mirror", "the {n} Codex", "the {n} Tablet", "the {n} Chronicle")
TEAMS = ("{n} United", "{n} Rovers", "{n} Athletic", "FC {n}", "{n} Wanderers", "{n} City")
COMPANIES = ("{n} and Sons", "{n} Brothers", "{n} Works", "House of {n}", "{n} Limited", "{n} Mills")
SHIPS = ("Star of {n}", "Lady {n}", "{n} Queen", "Pride of {n}", "Good {n}", "{n} Maid")
