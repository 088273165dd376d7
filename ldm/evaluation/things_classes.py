"""Which classes of ImageNet show what a noun of the everyday things names; where several do, each of them is right."""

import re

from ldm.data.things.nouns import NOUNS

# A noun of `NOUNS`, then its classes: numbers and spans of them, both ends included.
_TABLE = """
fox: 277-280               | cat: 281-285                | dog: 151-268, 273-275     | wolf: 269-272
lion: 291                  | tiger: 292                  | leopard: 288-290          | bear: 294-295, 297
polar bear: 296            | panda: 388                  | koala: 105                | monkey: 365, 367-382
gorilla: 366               | horse: 339                  | zebra: 340                | cow: 345-346
pig: 341-343               | sheep: 348-349              | goat: 348, 350            | camel: 354
llama: 355                 | elephant: 101, 385-386      | hippopotamus: 344         | rabbit: 330-332
squirrel: 335              | beaver: 337                 | kangaroo: 104             | rooster: 7
hen: 8                     | penguin: 145                | eagle: 22                 | duck: 97-98
goose: 99                  | swan: 100                   | owl: 24                   | flamingo: 130
peacock: 84                | parrot: 87-90               | frog: 30-32               | crocodile: 49-50
turtle: 33-37              | snake: 52-68                | lizard: 38-48             | whale: 147-148
shark: 2-4                 | fish: 0-1, 389-397          | crab: 118-121             | lobster: 122-123
jellyfish: 107             | shell: 112, 117             | snail: 113                | butterfly: 321-326
bee: 309                   | ladybug: 301                | ant: 310                  | spider: 72-77
teddy bear: 850            | apple: 948                  | orange: 950               | lemon: 951
banana: 954                | pineapple: 953              | strawberry: 949           | corn: 987
broccoli: 937              | cucumber: 943               | pepper: 945               | mushroom: 947, 992, 996-997
pizza: 963                 | hamburger: 933              | hot dog: 934              | ice cream: 928
cup: 504, 967-968          | teapot: 849                 | wine glass: 572           | beer: 441
bottle: 440, 737, 898, 907 | plate: 923                  | vase: 883                 | pan: 567
car: 436, 511, 627, 751, 817 | taxi: 468                 | ambulance: 407            | fire engine: 555
truck: 569, 675, 717, 864, 867 | bus: 654, 779, 874      | train: 466, 547, 565, 705, 820, 829
tractor: 866               | bicycle: 444, 671           | motorcycle: 665, 670      | airplane: 404, 895
rocket: 657, 744, 812      | sailboat: 484, 871, 914     | balloon: 417              | potted plant: 738
daisy: 985                 | chair: 423, 559, 765        | sofa: 831                 | bench: 703
table: 532                 | desk: 526                   | bed: 564                  | crib: 520, 431, 516
bookcase: 453              | wardrobe: 894               | lamp: 619, 846            | bathtub: 435
toilet: 861                | tent: 672                   | fountain: 562             | swing: 843
television: 664, 782, 851  | laptop: 620, 681            | computer: 527             | keyboard: 508, 810, 878
printer: 742, 713          | telephone: 528, 707         | mobile phone: 487, 590, 605
camera: 732, 759           | radio: 754                  | clock: 409, 530, 892      | watch: 531
hourglass: 604             | microwave: 651              | refrigerator: 760         | oven: 827
washing machine: 897       | toaster: 859                | candle: 470               | hammer: 587
screwdriver: 784           | shovel: 792                 | wheelbarrow: 428          | broom: 462
bucket: 463                | pen: 418, 563               | lock: 507, 695            | umbrella: 879
traffic light: 920         | mailbox: 637                | trash can: 412            | barrel: 427, 756
box: 478, 519              | chest: 492                  | basket: 588, 790          | shopping cart: 791
backpack: 414              | handbag: 636, 748           | hat: 439, 515, 808        | helmet: 518, 560
sunglasses: 836-837        | shirt: 610                  | jeans: 608                | socks: 806
shoe: 630, 770             | boot: 514                   | soccer ball: 805          | baseball: 429
basketball: 430            | volleyball: 890             | rugby ball: 768           | tennis racket: 752
guitar: 402, 546           | violin: 889                 | saxophone: 776            | drum: 541, 822
accordion: 401             | xylophone: 642              | tricycle: 870             | castle: 483
church: 497                | pumpkin: 607                | volcano: 980              | mountain: 970
"""


def _numbers(text: str) -> tuple[int, ...]:
    spans = ([int(end) for end in part.split("-")] for part in text.split(","))
    return tuple(sorted({number for span in spans for number in range(span[0], span[-1] + 1)}))


CLASSES: dict[str, tuple[int, ...]] = {
    noun.strip(): _numbers(numbers)
    for noun, _, numbers in (entry.partition(":") for entry in re.split(r"[|\n]", _TABLE.strip()))
}
"""Noun -> the classes that are right."""

assert CLASSES.keys() <= NOUNS.keys()
