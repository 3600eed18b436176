"""Made-up prose, different for every generator, of some 14 tokens a sentence."""

from random import Random

WHO = ("ferryman", "glazier", "beekeeper", "archivist", "stoker", "miller", "surveyor")
WHAT = ("brass keys", "wet ropes", "green bottles", "old maps", "salted plums")
WHERE = ("behind the weir", "under the bridge", "at the north gate", "by the kiln")


def prose(random: Random, sentences: int) -> str:
    """So many sentences."""
    return " ".join(
        f"The {random.choice(WHO)} left {random.randint(2, 99)} {random.choice(WHAT)} "
        f"{random.choice(WHERE)}."
        for _ in range(sentences)
    )
