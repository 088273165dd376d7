"""The nouns: what captions call each thing, and where its pictures come from.

Chosen so that a noun is well known, and shown by several sources or from many sides; a noun of one picture alone is
here only where everybody would ask for it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """words: what captions call the thing, the commonest first, which is its name. emoji: the annotations of its
    rendered objects. models: the names of its 3D models in the furniture catalogues, in lower case; `name#id` is the
    one whose folder is `id`."""

    words: tuple[str, ...]
    emoji: tuple[str, ...]
    models: tuple[str, ...]
    kind: str

    @property
    def name(self) -> str:
        """What the code calls it: the commonest word."""
        return self.words[0]

    @property
    def familiar(self) -> bool:
        """Whether composites show it far more often than most: see `FAMILIAR`."""
        return self.name in FAMILIAR


FAMILIAR = {
    *("fox", "dog", "cat", "rabbit", "bear", "panda", "lion", "tiger", "penguin", "owl", "duck", "chick"),
    *("hen", "pig", "cow", "horse", "elephant", "fish", "shark", "whale", "turtle", "frog", "butterfly"),
    *("bee", "ladybug", "snail", "zebra", "monkey", "teddy bear"),
    *("apple", "banana", "orange", "lemon", "strawberry", "cherry", "grapes", "watermelon", "pineapple"),
    *("carrot", "tomato", "broccoli", "corn", "mushroom", "pizza", "hamburger", "hot dog", "french fries"),
    *("ice cream", "cake", "cupcake", "doughnut", "cookie", "egg", "bread", "cheese"),
    *("pumpkin", "house", "castle", "snowman", "ghost"),
    *("teapot", "cup", "glass", "bottle"),
    *("car", "taxi", "bus", "truck", "fire engine", "train", "airplane", "boat", "rocket", "bicycle"),
    *("helicopter", "balloon"),
    *("chair", "sofa", "bed", "lamp", "table"),
    *("umbrella", "book", "gift", "key", "backpack"),
    *("guitar", "soccer ball", "basketball"),
    *("clock", "camera", "telephone", "robot", "candle"),
    *("hat", "shoe", "sunglasses", "crown"),
    *("tree", "sunflower", "rose", "tulip", "cactus", "potted plant"),
}
"""Nouns that are drawn several times as often. A small model learns a thing from a thousand of its pictures, not from a
hundred: in a few hours of two cores it learns these well, or all of them badly."""

PORTRAITS = {
    **{"cat": "1f431", "dog": "1f436", "tiger": "1f42f", "monkey": "1f435", "cow": "1f42e", "pig": "1f437"},
    **{"rabbit": "1f430", "horse": "1f434", "car": "1f697", "bus": "1f68c", "truck": "1f69a", "train": "1f682"},
    **{"taxi": "1f695", "whale": "1f433", "fish": "1f41f", "house": "1f3e0", "castle": "1f3f0", "snowman": "26c4"},
    **{"umbrella": "2602", "shoe": "1f45f", "hat": "1f3a9", "key": "1f511", "telephone": "260e", "camera": "1f4f7"},
    **{"clock": "23f0", "apple": "1f34e", "cake": "1f382", "ice cream": "1f366", "glass": "1f95b", "boat": "1f6e5"},
    **{"airplane": "2708", "chick": "1f424", "book": "1f4d5"},
}
"""Which rendered object stands for a familiar noun of which there are several, by its code point: a face rather than a
figure, for a face is known by a few strokes."""

# A kind, then a line a noun: words | emoji | models. "=" stands for the first word; an indented line belongs to the one
# before it.
_TABLE = """
animal
fox                              | =
cat, kitty                       | =; cat face; black cat        | =; siamese cat
dog                              | =; dog face; service dog; guide dog | =; bulldog
wolf                             | =
lion                             | =
tiger                            | =; tiger face
leopard                          | =
bear, brown bear                 | bear
polar bear                       | =
panda                            | =
koala                            | =
monkey                           | =; monkey face
gorilla                          | =
horse                            | =; horse face                 | =
zebra                            | =
deer                             | =                             | =
cow                              | =; cow face
pig                              | =; pig face
sheep, ewe                       | ewe
goat                             | =
camel                            | =; two-hump camel
llama                            | =
giraffe                          | =
elephant                         | =
rhinoceros, rhino                | =
hippopotamus, hippo              | =
mouse                            | =; mouse face; rat
rabbit, bunny                    | =; rabbit face                | =
squirrel, chipmunk               | chipmunk
hedgehog                         | =
raccoon                          | =
beaver                           | =
kangaroo                         | =
bat                              | =
rooster                          | =
hen, chicken                     | chicken                       | chicken
chick                            | baby chick; front-facing baby chick; hatching chick
bird                             | =
penguin                          | =
eagle                            | =
duck                             | =
goose                            | =
swan                             | =
owl                              | =
flamingo                         | =
peacock                          | =
parrot                           | =
frog                             | =
crocodile, alligator             | =
turtle                           | =
snake                            | =
lizard                           | =
dinosaur                         | sauropod; T-Rex
dragon                           | =; dragon face
unicorn                          | =
whale                            | =; spouting whale
dolphin                          | =
shark                            | =
fish                             | =; tropical fish; blowfish
octopus                          | =
crab                             | =
lobster                          | =
shrimp                           | =
jellyfish                        | =
shell, seashell                  | spiral shell
snail                            | =
butterfly                        | =
bee                              | honeybee
ladybug, ladybird                | lady beetle
ant                              | =
spider                           | =
teddy bear                       | =                             | =
person
man                              | =; man: beard                 | male; sitting male; holding male
woman                            | =; woman: blond hair          | female; sitting female; holding female
boy                              | =                             | =; sitting boy
girl                             | =                             | =; sitting girl
food
apple                            | red apple; green apple        | apples
pear                             | =
orange                           | tangerine
lemon                            | =
banana                           | =
pineapple                        | =
strawberry                       | =
cherry, cherries                 | cherries
grapes                           | =
peach                            | =
watermelon                       | =
coconut                          | =
blueberries                      | =
tomato                           | =
carrot                           | =
corn                             | ear of corn
eggplant, aubergine              | eggplant
broccoli                         | =
cucumber                         | =
potato                           | =
onion                            | =
pepper, bell pepper              | bell pepper
avocado                          | =
mushroom                         | =
bread, loaf of bread             | bread                         | bread
croissant                        | =
pizza, slice of pizza            | pizza
hamburger, burger                | =                             | =
hot dog                          | =                             | =
sandwich                         | =
taco                             | =
french fries, fries              | french fries                  | french fries
cheese                           | cheese wedge
egg                              | =
steak                            | cut of meat                   | =
sushi                            | =                             | sushi tray
salad                            | green salad                   | bowl with salad
popcorn                          | =
doughnut, donut                  | =
cookie                           | =
cupcake                          | =                             | cup cake
cake, birthday cake              | birthday cake; shortcake      | birthday cake
pancakes                         | =
waffle                           | =
ice cream                        | =; soft ice cream
chocolate                        | chocolate bar
candy                            | =
lollipop                         | =
bowl of fruit                    |                               | bowl with fruits
dish
cup, mug, coffee cup             | hot beverage                  | coffee cup; coffee mug; cup
teapot                           | =                             | =
glass, drinking glass            | glass of milk; tumbler glass  | glass
wine glass                       | =
beer, glass of beer              | beer mug                      | beer glass
cocktail                         | cocktail glass; tropical drink | cocktail glass
bottle                           | bottle with popping cork      | wine bottle; beer bottle; bottle; yogurt bottle
plate                            |                               | oval plate; plate
bowl                             | bowl with spoon               | =
spoon                            | =                             | =
fork                             |                               | =
knife                            | kitchen knife                 | knife; kitchen knife
jar, pot                         | jar; amphora                  | old jar; pottery
vase                             |                               | =
pan, frying pan                  | shallow pan of food           | large pan
kettle                           |                               | espresso kettle
vehicle
car, automobile                  | automobile; oncoming automobile; racing car | car model; ford focus; seat leon;
    peugeot 308 cc; renault scenic; chevrolet; smart car; concept sedan 01; concept sedan 02;
    concept sedan 02 sport; vw new beetle; suv
taxi, cab                        | taxi; oncoming taxi
police car                       | =; oncoming police car
ambulance                        | =
fire engine, fire truck          | fire engine
truck, lorry                     | delivery truck; articulated lorry; pickup truck | truck
van                              | minibus                       | =
bus                              | =; oncoming bus; trolleybus   | =; city bus
train, locomotive                | locomotive; train; high-speed train; tram | toy train
tractor                          | =
bicycle, bike                    | =                             | =; bike
motorcycle, motorbike            | =                             | motorbike; yamaha yzr r6
scooter                          | motor scooter; kick scooter   | =
skateboard                       | =                             | =
wheelchair                       | manual wheelchair; motorized wheelchair | =
airplane, plane                  | =; small airplane             | biplane
helicopter                       | =
rocket                           | =
flying saucer, ufo               | flying saucer
ship                             | =; passenger ship; ferry
sailboat                         | =
boat                             | speedboat; motor boat; canoe  | rowboat
balloon                          | =
plant
tree                             | deciduous tree                | acacia; sycamore maple; poplar; copper beech;
    japanese maple; peach blossom
pine tree, fir tree              | evergreen tree                | pine; cypress
palm tree                        | =                             | =; coconut tree; bended coconut tree
christmas tree                   | Christmas tree                | =
cactus                           | =                             | =
potted plant, houseplant         | potted plant                  | plant; indoor plant; decorative plant;
    little plant; yucca; ficus; spathiphyllum; spider plant; succulent plant
bonsai                           |                               | bonsai tree
bush, hedge                      |                               | bush; hedge; high hedge
flowers, bouquet                 | bouquet                       | flowers; orchids; white lily
tulip, tulips                    | tulip                         | tulips
rose                             | =
sunflower                        | =
daisy                            | blossom
leaf, maple leaf                 | maple leaf; fallen leaf
furniture
chair                            | =                             | =; cafe chair; oak chair; plastic chair;
    folding chair; chair with cushion; osaka chair; child chair; children chair; ryokan chair; teck chair
armchair                         |                               | =; winchester armchair; modern armchair;
    rattan armchair; relax chair
sofa, couch                      | couch and lamp                | =; couch; winchester sofa; corner sofa;
    sofa 2 seats; sofa 3 seats; burlap sofa; clear sofa; rattan sofa; futon couch
bench                            |                               | =; painted bench; concrete bench; wood bank
stool                            |                               | =; bar stool; bar chair
deck chair, beach chair          |                               | deck chair; beach chair; pool lounge
table                            |                               | =; oak table; wooden table; round table;
    wooden teak table; wooden alder table; coffee table; glass table; cafe table; table with tablecloth;
    rattan table; black table
desk                             |                               | =; wooden desk
bed                              | =                             | =; iron bed; child bed; captain's bed
bunk bed                         |                               | =; mezzanine bed
crib, cot                        |                               | crib; baby bed
bookcase, bookshelf              |                               | =; full bookcase; shelves
wardrobe                         |                               | =
cupboard, cabinet                | file cabinet                  | cupboard; drawers cabinet; glass door cabinet;
    filing cabinet; dresser with drawers
lamp                             |                               | =; desk lamp; little lamp; pedestal vase lamp
chandelier                       |                               | chandelier lamp
street lamp, lamppost            |                               | street lamp; classic lamppost; street light;
    park light; outdoor lamp
fireplace                        |                               | =
door                             | =                             | =; exterior door
window                           | =                             | double-hung window;
    double window with large pane; double arched window
bathtub, bath                    | bathtub                       | bath; corner bathtub; island bath
toilet                           | =                             | toilets unit
tent                             | =                             | camping tent
fence                            |                               | =
fountain                         | =                             | =
swing                            |                               | child swing
hammock                          |                               | =
machine
television, tv                   | =                             | tv; tv 16:9; wall flat tv
laptop                           | =                             | =; apple ibook
computer                         | desktop computer              | apple imac 1998; apple imac 2004
keyboard                         |                               | =
printer                          | =                             | inkjet printer and scanner
telephone, phone                 | =; telephone receiver         | phone; wireless phone
mobile phone, smartphone         | mobile phone                  | mobile phone; apple iphone
camera                           | =; camera with flash          | =; reflex camera
radio                            | =                             | =
headphones                       | headphone                     | =
clock, alarm clock               | alarm clock; mantelpiece clock | clock; cuckoo clock
watch, wristwatch                | watch                         | watch
hourglass                        | hourglass done; hourglass not done
microwave                        |                               | =
refrigerator, fridge             |                               | refrigerator; fridge; large fridge
oven, stove                      |                               | oven; stove; large stove; cooker; double oven
washing machine                  |                               | =; clothes washing machine
toaster                          |                               | =
blender, mixer                   |                               | blender; mixer
coffee maker, coffee machine     |                               | coffee maker; coffee machine; coffee brewer
fan                              |                               | table fan; rigged fan
light bulb                       | =
flashlight, torch                | flashlight                    | flashlight
candle                           | =                             | =
lantern                          | red paper lantern             | japanese lantern; stone lantern; camping lamp
microscope                       | =
telescope                        | =
robot                            | =
tool
hammer                           | =                             | =
screwdriver                      | =                             | =
saw                              | carpentry saw                 | saw
wrench, spanner                  | wrench
drill                            |                               | =
shovel, spade                    |                               | shovel
wheelbarrow                      |                               | =
ladder                           | =                             | step ladder; small step ladder
broom                            | =                             | =
bucket                           | =
scissors                         | =                             | =
pencil                           | =                             | =
pen                              | =; fountain pen               | text marker
paintbrush, brush                | paintbrush                    | brush
key                              | =; old key                    | keys
lock, padlock                    | locked; unlocked              | number lock
magnet                           | =
umbrella                         | =; closed umbrella; umbrella on ground | =
toothbrush                       | =
fire extinguisher                | =                             | extinguisher
fire hydrant                     |                               | =
traffic cone                     |                               | cone
traffic light                    | vertical traffic light; horizontal traffic light
mailbox, letter box              | postbox; closed mailbox with raised flag | mailbox; letters box
trash can, dustbin               | wastebasket                   | dustbin; park trashcan; residential trashcan;
    bullet trash can; recycling bin
barrel                           | oil drum                      | =
box, cardboard box               | package                       | cardboard box; open cardboard box; box
crate                            |                               | =
chest                            |                               | =; trunck
basket                           | =                             | clothes basket; shopping basket
shopping cart                    | =
book                             | closed book; green book; blue book; orange book | =
newspaper                        | =                             | =
gift, present                    | wrapped gift                  | gift
backpack                         | =                             | =
handbag, purse                   | handbag; purse                | handbag
suitcase, luggage                | luggage                       | suitcase
briefcase                        | =                             | =
wear
hat                              | top hat; woman’s hat          | =
cap, baseball cap                | billed cap                    | cap
helmet                           | rescue worker’s helmet; military helmet | helmet
crown                            | =
glasses                          | =                             | =
sunglasses                       | =                             | =
shirt, t-shirt                   | t-shirt
jacket, coat                     | coat                          | jacket
dress                            | =                             | =
jeans, trousers                  | jeans                         | trousers
skirt                            |                               | =
tie, necktie                     | necktie
scarf                            | =
gloves, glove                    | gloves                        | glove
socks                            | =
shoe, sneaker                    | running shoe; man’s shoe      | sneakers; mocassin
high heels                       | high-heeled shoe              | woman shoes
boot                             | woman’s boot; hiking boot
ring                             | =                             | =
diamond, gem                     | gem stone
play
soccer ball, football            | soccer ball                   | soccer ball
basketball                       | =                             | =
baseball                         | =
volleyball                       | =
rugby ball, american football    | american football; rugby football
tennis racket                    |                               | =
boxing glove                     | =
bowling pin                      | bowling
dice, die                        | game die
chessboard                       |                               | =
guitar, electric guitar          | guitar                        | electric guitar
violin                           | =
trumpet                          | =
saxophone                        | =
drum                             | =
accordion                        | =
xylophone                        |                               | =
trophy                           | =
bell                             | =
kite                             | =
rocking horse                    |                               | =
doll                             | nesting dolls                 | =
swimming pool                    |                               | round swimming pool; rectangle swimming pool
trampoline                       |                               | =
tricycle                         |                               | =
stroller, pram                   |                               | stroller
aquarium, fish tank              |                               | aquarium
place
house                            | =; house with garden          | doll house
castle                           | =; Japanese castle
church                           | =
hut                              | =                             | garden hut
dog house, kennel                |                               | dog house
snowman                          | =; snowman without snow       | =
pumpkin, jack-o-lantern          | jack-o-lantern
rock, stone                      | =                             | rock
mountain                         | snow-capped mountain; mountain; mount fuji
volcano                          | =
sun                              | =; sun with face
moon                             | full moon; crescent moon
star                             | =; glowing star
cloud                            | =
rainbow                          | =
fire, flame                      | fire
snowflake                        | =
planet                           | ringed planet
heart                            | red heart; heart suit
ghost                            | =
skull                            | =
"""


def _parse(table: str) -> Iterator[Noun]:
    kind = ""
    for line in re.sub(r";\n +", "; ", table).strip().splitlines():
        words, *sources = (field.strip() for field in line.split("|"))
        if not sources:
            kind = words
            continue
        names = tuple(word.strip() for word in words.split(","))
        emoji, models = (
            tuple(names[0] if name.strip() == "=" else name.strip() for name in field.split(";")) if field else ()
            for field in (*sources, "")[:2]
        )
        yield Noun(names, emoji, models, kind)


NOUNS: dict[str, Noun] = {noun.name: noun for noun in _parse(_TABLE)}
"""By name, in the order of the kinds."""
