"""What the report's words mean."""

from __future__ import annotations

TERMS: tuple[tuple[str, str], ...] = (
    (
        "Test accuracy",
        "Share of test records that the released model classifies correctly: the utility that a defense is paid with.",
    ),
    (
        "Membership attack",
        "Guesses from the model's answers whether a record was in its training set. Each record gets a score; the "
        "larger, the more likely a member. Who was a member is joined only after the attack has returned.",
    ),
    (
        "AUC",
        "The chance that a random member gets a higher score than a random non-member. 0.5 is guessing, 1 is "
        "certainty. Clearly below 0.5 is a leak as well: the signal is inverted, and the report raises a flag.",
    ),
    (
        "TPR at FPR",
        "Share of members that the attack finds while it wrongly accuses at most this share of non-members. At low "
        "FPR it shows whether some records can be identified with confidence, which an average hides.",
    ),
    (
        "Balanced accuracy",
        "Mean of the share of members and the share of non-members that an attack with a threshold tells correctly; "
        "50 % is guessing. Per class: each class has its own threshold.",
    ),
    (
        "Shadow model: matched, vanilla",
        "A model that the adversary trains on its own records, so as to know who was a member of it, and to fit "
        "thresholds or whole attacks. Matched: trained with the target's defense, as an adversary would who knows it. "
        "Vanilla: trained without any, as many papers did; it can make a leak look like guessing.",
    ),
    (
        "Black box, white box, label only",
        "What the adversary sees: the released scores; the weights as well; or the predicted class alone.",
    ),
    (
        "Masked output, unranked",
        "A masked setting changes the scores when it is queried and leaves the classes and the weights as they were. "
        "Attacks on scores may then be misled and not stopped, so without a label-only attack the setting is shown "
        "but not called better.",
    ),
    (
        "Loss, its mean and variance",
        "Cross-entropy of the released model in nats, over the records of a fold. Members that all have nearly zero "
        "loss stand out from non-members.",
    ),
    (
        "Epsilon, delta",
        "A guarantee of training with differential privacy: whatever is computed from the model, one record changes "
        "its probability by a factor of at most e to the epsilon, but for a probability of delta. It holds for every "
        "attack; a large epsilon says next to nothing.",
    ),
    (
        "Resolved, unresolved",
        "A rate is reported only if the sample can support it: TPR at an FPR needs at least 10 expected "
        "false positives, so 1 % needs 1,000 non-members. Anything finer is called unresolved and gets no number.",
    ),
    (
        "Canary",
        "A crafted record, for instance with a fixed wrong label, put into training by a fair coin. The held-out "
        "half are its non-members. Canaries are the worst case: they show what the model does to records that it "
        "must memorize.",
    ),
    (
        "Canary model",
        "Canaries are planted in a second model that is trained apart. Utility, average membership and inversion come "
        "from the model without canaries.",
    ),
    (
        "Inversion attack",
        "Searches for pictures that the model assigns to a class, so as to show what the class looks like (for faces: "
        "who it is). The prior it searches in was trained on public images, alone or against the attacked model; of an "
        "imported one it is not known.",
    ),
    (
        "Inversion top-1, top-5",
        "Share of reconstructions that an independent evaluation model, never seen by attack or defense, assigns to "
        "the attacked class (first guess; among the first five). Top-5 is given from 20 classes up.",
    ),
    (
        "Second model, disagreement",
        "A second evaluation model of another architecture, trained alike. Of the reconstructions that the first "
        "recognizes, disagreement is the share that the second does not: pictures that please one network more "
        "than they show the class.",
    ),
    (
        "Faint",
        "Share of the reconstructions recognized by the first model that have less contrast than every real image of "
        "their class they were compared with. A judge has to name some class even for an empty picture, and two judges "
        "that were trained alike may name the same one.",
    ),
    (
        "Embedder",
        "A network that was trained elsewhere to tell faces apart, such as FaceRes; whether it met the same people "
        "there may not be known. It recognizes a reconstruction whose features point nearest to the "
        "mean of the attacked class, among those of the attacked classes; chance is one of these.",
    ),
    (
        "No-target control",
        "The same attack on an undefended model of other classes, as many of them, whose reconstructions are judged as "
        "if they were the private ones. What it reaches, an attack reaches without any leak: a floor for "
        "false positives. Top-1 that is not above it is not believable.",
    ),
    (
        "Unoptimized samples",
        "What the prior draws before any search, judged against every attacked class: a second floor. An attack that "
        "is not above it has found nothing that the prior did not hold.",
    ),
    (
        "Distance to real images: nearest, center",
        "Mean squared distance from a reconstruction's features to those of the nearest real image of its class (KNN "
        "distance), and to the mean of the class. Large is private. It means something beside numbers from the "
        "same network only.",
    ),
    (
        "Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet distance, FID",
        "Distance between all reconstructions and all real images, each taken for a normal distribution of features. "
        "The column names the network that made them: the evaluation model, EfficientNet-Lite0, or Inception-v3, "
        "whose distance alone is called FID. It falls with the number of samples, so compare it between equal counts "
        "alone; the summary of the judge's stage has them.",
    ),
    (
        "PRDC: precision, recall, density, coverage",
        "Likeness by neighborhoods of k images of the same class, in the evaluation model's features. Precision and "
        "density: how many reconstructions lie among real images; recall: how many real images lie among "
        "reconstructions; coverage: how many real images have a reconstruction near them. Density may exceed 1.",
    ),
    (
        "Chance",
        "What an attack that knows nothing reaches. A leak is what exceeds it.",
    ),
    (
        "Strongest attack",
        "Where several attacks were run, the one with the highest mean for that setting, because an adversary may "
        "choose. The highest of several noisy numbers lies a little too high, for every setting alike.",
    ),
    (
        "Seed, paired",
        "A seed fixes split, initialization, order of data and start of the attack, the same for every setting. "
        "A paired difference subtracts the baseline of the same seed.",
    ),
    (
        "Range, interval",
        "Below five seeds the report shows every seed and their range, and calls nothing a 95 % interval. From "
        "five seeds up, differences carry Student's t interval with n \N{MINUS SIGN} 1 degrees of freedom. Small "
        "numbers under a seed's value are the interval inside that seed, over records or identities.",
    ),
)
