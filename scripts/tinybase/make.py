"""Make the embedded default from nothing: a toy world, a tiny Llama that knows it, and a question task about it.

    python scripts/tinybase/make.py .                 # from the repository's root: everything, in place
    python scripts/tinybase/make.py OUT --only-task   # the two task files alone (needs no package)

The world is a list of facts about people (invented), things, words and countries (true). The base model reads them
as statements ("Anna lives in Denby.", "A robin is a bird.") and never sees a question. The task asks for the same
facts ("Question: Where does Anna live?\\nAnswer: Denby"). No training question or option names a person, thing or
word that the test asks about, so an adapter that answers the test cannot have learned the answers: it has learned to
bring out what the base knows.

It writes
    OUT/model/tiny/config.json, model.safetensors (bfloat16, tied embeddings), tokenizer.json
    OUT/datasets/toy/train.jsonl, test.jsonl       {"question": str, "options": [str, ...], "gold": int} a line

Needs torch, transformers, tokenizers and safetensors for the base (the committed one: 2.11.0, 5.17.0, 0.23.2, 0.8.0,
on the CPU, 5 minutes on two cores, 2 on ten). The task files come out the same byte for byte wherever the script
runs, and the tokenizer with the same version of tokenizers. Weights differ between machines and numbers of threads,
and the figures of a training run with them: look at both after making them again. Accuracy after one epoch of a
token-wise adapter (8 experts of rank 8, 32 questions a step, peak learning rate 2e-3 with linear decay), mean of six
adapters for each of six seeds of the base: 96, 99, 97, 97, 98 and 74 %; the base alone 24 to 35 % (chance 25 %).
"""
import argparse
import json
import random
import re
from pathlib import Path

# ---------------------------------------------------------------------------------------------------------- the world

NAMES = """
Aaron Abigail Adam Adele Adrian Agnes Aidan Alan Albert Alexa Alfred Alice Alison Alma Amanda Amber Amelia Amy
Andrea Andrew Angela Anita Anna Annie Anthony Arnold Arthur Astrid Audrey Barbara Barry Beatrice Becky Bella
Benjamin Bernard Bertha Bethany Betty Beverly Blake Bonnie Boris Brandon Brenda Brian Bridget Bruce Bruno
Byron Caleb Calvin Cameron Candice Carl Carla Carmen Carol Caroline Carter Casper Cassandra Catherine Cecil
Celia Chloe Chris Christine Claire Clara Clarence Clark Claudia Clement Clifford Clyde Colin Connie Conrad
Cora Corinne Craig Curtis Cynthia Damon Daniel Daphne Darren David Dawn Dean Deborah Delia Denise Dennis Derek
Diana Diego Dominic Donald Donna Doris Dorothy Douglas Duncan Dwight Dylan Edgar Edith Edmund Edward Edwin
Eileen Elaine Eleanor Elena Eli Elias Elinor Elise Elizabeth Ella Ellen Elliot Eloise Elsa Elvira Emil Emily
Emma Eric Erica Ernest Esther Ethan Eugene Eunice Eva Evan Evelyn Faith Felicia Felix Ferdinand Fiona Flora
Florence Floyd Frances Francis Frank Franklin Fred Freda Frederick Gabriel Gail Gareth Gavin Gemma Geoffrey
George Gerald Gertrude Gilbert Gladys Glenn Gloria Gordon Graham Greta Gregory Gustav Guy Gwen Hannah Harold
Harriet Harry Harvey Hazel Heather Hector Helen Helga Henry Herbert Herman Hilda Homer Howard Hubert Hugo
Humphrey Ian Ida Igor Ingrid Irene Irma Isaac Isabel Isadora Ivan Ivor Jack Jacob James Jane Janet Janice
Jason Jeffrey Jennifer Jeremy Jerome Jessica Jill Joan Joanna Jocelyn Joel John Jonathan Joseph Josephine
Joshua Joyce Judith Julia Julian Justin Karen Karl Kate Keith Kelly Kenneth Kevin Kirsten Klaus Kurt Kyle Lara
Larry Laura Lawrence Leah Leo Leonard Leroy Leslie Lewis Liam Linda Lionel Lloyd Logan Lois Lorna Louis Louise
Lucas Lucy Luke Luther Lydia Lynn Mabel Madeline Magnus Malcolm Marcus Margaret Maria Marian Marion Mark
Marlene Martha Martin Marvin Mary Matilda Matthew Maud Maureen Maurice Max Melanie Melvin Michael Mildred
Miles Millie Minnie Miranda Miriam Moira Molly Monica Morris Moses Muriel Nadia Nancy Naomi Natalie Nathan
Neil Nelson Neville Nicholas Nicole Nigel Nina Nora Norma Norman Octavia Olga Oliver Olivia Oscar Oswald Otto
Owen Pamela Patricia Patrick Paul Paula Pauline Penelope Percy Peter Philip Phoebe Phyllis Priscilla Quentin
Rachel Ralph Ramona Raymond Rebecca Regina Reginald Renata Rhoda Richard Rita Robert Roderick Rodney Roger
Roland Rolf Ronald Rosalind Rosemary Roxanne Roy Rudolf Rufus Rupert Ruth Ryan Sabrina Sally Samantha Samuel
Sandra Sarah Saul Scott Sebastian Selma Sharon Sheila Shirley Sidney Sigrid Silvia Simon Solomon Sonia Stanley
Stella Stephen Steven Stuart Susan Sven Sybil Tabitha Tamara Tanya Teresa Thelma Theodore Thomas Timothy
Tobias Toby Tracy Trevor Ursula Valerie Vanessa Vera Vernon Veronica Victor Vincent Viola Virgil Vivian
Vladimir Wallace Walter Wanda Warren Wayne Wendy Wilbur Wilfred William Wilma Winifred Xavier Yolanda Yvonne
Zelda Zoe
""".split()

# What each person has: (values, statements, questions). Every person draws one value of each.
PERSON = {
    "town": ("Ashford Burley Corby Denby Harwick Kelso Linton Marlow Norwell Selby Tilbury Wexham",
             ("{x} lives in {v}.", "The home of {x} is in {v}.", "The town where {x} lives is {v}."),
             ("Where does {x} live?", "In which town is the home of {x}?")),
    "job": ("baker barber butcher carpenter doctor farmer lawyer nurse painter sailor tailor teacher",
            ("{x} works as a {v}.", "The job of {x} is that of a {v}.", "In the village {x} is the {v}.",
             "For a living {x} serves as village {v}."),
            ("What is the job of {x}?", "What does {x} do for a living?")),
    "pet": ("canary cat dog goldfish hamster kitten lizard parrot pony puppy rabbit turtle",
            ("{x} has a {v}.", "The pet of {x} is a {v}.", "At home {x} feeds the {v}.",
             "For a pet {x} has one {v}."),
            ("Which pet does {x} have?", "What is the pet of {x}?")),
    "music": ("banjo cello clarinet flute guitar harp piano tambourine trombone trumpet tuba violin",
              ("{x} plays the {v}.", "The instrument of {x} is a {v}.", "In the band {x} plays {v}."),
              ("What does {x} play?", "Which instrument does {x} play in the band?")),
    "color": ("black blue brown gray green orange pink purple red white yellow",
              ("{x} likes {v}.", "The favorite color of {x} is {v}.", "Of all colors {x} likes {v}."),
              ("Which color does {x} like?", "What is the favorite color of {x}?")),
}

KINDS = {
    "bird": "crow dove duck eagle falcon finch gull hawk heron owl pigeon raven robin sparrow stork swan",
    "fish": "anchovy carp cod eel flounder haddock halibut herring mackerel perch pike salmon sardine shark "
            "trout tuna",
    "tree": "alder ash beech birch cedar cypress elm fir larch maple oak pine poplar spruce willow yew",
    "tool": "axe chisel clamp crowbar drill file hammer hoe mallet rake saw screwdriver shovel sickle spade "
            "wrench",
    "fruit": "apple apricot banana cherry fig grape kiwi lemon lime mango melon papaya peach pear plum "
             "quince",
    "vegetable": "artichoke bean beetroot cabbage carrot cauliflower cucumber leek lettuce onion parsnip "
                 "potato pumpkin radish shallot turnip",
    "flower": "buttercup crocus daffodil dahlia daisy lily lotus marigold orchid peony poppy primrose rose "
              "sunflower tulip violet",
    "vehicle": "bicycle bus car cart ferry lorry rocket scooter sled taxi tractor train tram truck van "
               "wagon",
    "garment": "apron belt blouse cap coat dress glove hat jacket sandal scarf shirt skirt sock sweater "
               "vest",
    "bug": "ant bee beetle butterfly cockroach cricket dragonfly grasshopper hornet ladybug locust mosquito "
           "moth termite wasp weevil",
    "mammal": "badger bear camel cow deer elephant fox giraffe goat horse lion otter sheep tiger wolf zebra",
    "building": "barn castle church cottage factory hospital hotel house library mill museum palace school "
                "stadium temple theater",
}

COUNTRIES = {
    "Europe": "Albania Austria Belgium Bulgaria Croatia Denmark Estonia Finland France Germany Greece "
              "Hungary Iceland Ireland Italy Latvia Lithuania Norway Poland Portugal Romania Serbia "
              "Slovakia Slovenia Spain Sweden Switzerland Ukraine",
    "Asia": "Afghanistan Bangladesh Bhutan Cambodia China India Iran Iraq Japan Laos Lebanon Malaysia "
            "Mongolia Myanmar Nepal Oman Pakistan Qatar Singapore Syria Thailand Vietnam Yemen",
    "Africa": "Algeria Angola Benin Botswana Burundi Cameroon Congo Egypt Ethiopia Gabon Ghana Kenya "
              "Liberia Libya Madagascar Malawi Mali Morocco Mozambique Namibia Niger Nigeria Rwanda Senegal "
              "Somalia Sudan Tanzania Togo Tunisia Uganda Zambia Zimbabwe",
    "America": "Argentina Bolivia Brazil Canada Chile Colombia Cuba Ecuador Guatemala Guyana Haiti Honduras "
               "Jamaica Mexico Nicaragua Panama Paraguay Peru Uruguay Venezuela",
}

OPPOSITES = """
hot cold;big small;fast slow;light dark;wet dry;hard soft;high low;old young;rich poor;full empty;loud quiet;near far;
early late;strong weak;open shut;clean dirty;thick thin;wide narrow;happy sad;sharp blunt;deep shallow;rough smooth;
tight loose;brave timid;up down;left right;good bad;true false;day night;north south;east west;first last;push pull;
buy sell;win lose;love hate;begin end;inside outside;above below;before after;give take;come go;laugh cry;sweet bitter;
ancient modern;polite rude;safe dangerous;simple complex;cheap costly;tall short;sick healthy;war peace;friend enemy;
arrive depart;asleep awake;attack defend;build destroy;borrow lend;accept refuse;remember forget;rise fall;
same different;summer winter;truth lie
""".replace("\n", "").split(";")


def article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def people():
    """Each person's value of each attribute, the same in every run."""
    r = random.Random(11)
    return {x: {k: r.choice(v[0].split()) for k, v in PERSON.items()} for x in NAMES}


def statements():
    """The facts as plain statements, one list a family; the base reads families in proportion to their lengths."""
    who = people()
    family = {k: [s.format(x=x, v=who[x][k]) for x in NAMES for s in v[1]] for k, v in PERSON.items()}
    family["kind"] = [s.format(x=article(x), y=x, v=k) for k, xs in KINDS.items() for x in xs.split()
                      for s in ("{x} is a {v}.", "The word {y} names a {v}.",
                                "Everyone knows that {x} is some kind of {v}.")]
    family["letter"] = [s.format(x=x, v=x[0]) for xs in KINDS.values() for x in xs.split()
                        for s in ("The word {x} begins with {v}.", "The first letter of {x} is {v}.")]
    family["place"] = [s.format(x=x, v=k) for k, xs in COUNTRIES.items() for x in xs.split()
                       for s in ("{x} lies in {v}.", "The country {x} is in {v}.", "On the map {x} is in {v}.")]
    pairs = [p.split() for p in OPPOSITES]
    family["opposite"] = [s.format(x=x, v=v) for a, b in pairs for x, v in ((a, b), (b, a))
                          for s in ("The opposite of {x} is {v}.", "If it is not {x} then it is {v}.")]
    return {k: [s[0].upper() + s[1:] for s in v] for k, v in family.items()}


# ----------------------------------------------------------------------------------------------------------- the task

def split(things, seed):
    """(train, test): one thing in six is asked about in the test alone."""
    things = list(things)
    random.Random(seed).shuffle(things)
    n = len(things) // 6
    return sorted(things[n:]), sorted(things[:n])


def questions(part):
    """(question, right answer, wrong answers to draw from) for every fact of a part: 0 train, 1 test.

    Wrong answers to a question about opposites come from the same part, so that no training question or option names
    a word which the test asks about.
    """
    who = people()
    for x in split(NAMES, 21)[part]:
        for k, (values, _, ask) in PERSON.items():
            for q in ask if part == 0 else ask[len(x) % 2:][:1]:
                yield q.format(x=x), who[x][k], [v for v in values.split() if v != who[x][k]]
    kind = {x: k for k, xs in KINDS.items() for x in xs.split()}
    letters = sorted({x[0] for x in kind})
    for x in split(kind, 22)[part]:
        yield f"What is {article(x)}?", kind[x], [k for k in KINDS if k != kind[x]]
        yield f"What is the first letter of {x}?", x[0], [c for c in letters if c != x[0]]
    place = {x: k for k, xs in COUNTRIES.items() for x in xs.split()}
    for x in split(place, 23)[part]:
        yield f"Where on the map is {x}?", place[x], [k for k in COUNTRIES if k != place[x]]
    pairs = [p.split() for p in split(OPPOSITES, 24)[part]]
    for a, b in pairs:
        for x, v in ((a, b), (b, a)):
            yield f"What is the opposite of {x}?", v, [w for p in pairs for w in p if w not in (x, v)]


def items(part):
    """The task's items in a fixed random order; the right answer stands in each of the four places equally often."""
    r = random.Random(31 + part)
    qs = list(questions(part))
    r.shuffle(qs)
    out = []
    for i, (q, right, wrong) in enumerate(qs):
        options = r.sample(wrong, 3)
        options.insert(i % 4, right)
        out.append({"question": q, "options": options, "gold": i % 4})
    r.shuffle(out)
    return out


def write_task(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in enumerate(("train", "test")):
        lines = [json.dumps(x) for x in items(part)]
        (folder / f"{name}.jsonl").write_bytes("".join(x + "\n" for x in lines).encode())
        print(f"{name}: {len(lines)} items")


# ----------------------------------------------------------------------------------------------------------- the base

END = "<|endoftext|>"


def make_tokenizer():
    """Byte-level BPE, digits apart, as SmolLM2 has it. Merges go on until every word of the world and of the questions
    is one token, after a space and, where a statement begins with it, without one. Some words of the questions are
    tokens that the base never reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    text = [s for f in statements().values() for s in f]
    inside = re.findall(r"[A-Za-z]+", " ".join(text + [q for q, _, _ in questions(0)]))
    starts = [s.split()[0] for s in text] + ["Question", "Answer"]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(sorted(set(starts)) + sorted({" " + w for w in inside}), trainers.BpeTrainer(
        vocab_size=8192, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return tok


def batches(tok, rows, length, seed):
    """Endless (rows, length) token ids: documents of one to six statements, each ended by END, laid end to end."""
    import torch
    r = random.Random(seed)
    family = [[(tok.encode(s).ids, tok.encode(" " + s).ids) for s in f] for f in statements().values()]
    weight = [len(f) for f in family]
    end = tok.token_to_id(END)
    flow = []
    while True:
        while len(flow) < rows * length:
            chosen = r.choices(family, weight, k=r.randint(1, 6))
            for i, f in enumerate(chosen):
                flow += r.choice(f)[i > 0]
            flow.append(end)
        yield torch.tensor(flow[:rows * length]).view(rows, length)
        del flow[:rows * length]


def pretrain(tok, steps, seed, device):
    """The base, trained on statements. Two layers are enough to look up one fact about one thing. How well adapters
    find the facts varies with the seed, and more so with a narrower MLP or with more layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    end = tok.token_to_id(END)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=tok.get_vocab_size(), hidden_size=128, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=end, eos_token_id=end)).to(device)
    print("vocabulary", tok.get_vocab_size(), "weights", sum(p.numel() for p in model.parameters()), flush=True)
    peak, warmup = 3e-3, 100
    opt = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    for step, ids in zip(range(steps), batches(tok, 64, 64, seed)):
        for g in opt.param_groups:
            g["lr"] = peak * min((step + 1) / warmup, max(0.02, 1 - step / steps))
        ids = ids.to(device)
        loss = model(input_ids=ids, labels=ids).loss
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if step % 100 == 0 or step == steps - 1:
            print("step", step, "loss", round(loss.item(), 3), flush=True)
    return model


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("out", type=Path)
    p.add_argument("--only-task", action="store_true", help="write the task files and stop")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--seed", type=int, default=2, help="of the weights and the order of statements, not of the task")
    p.add_argument("--steps", type=int, default=1500, help="pretraining steps")
    a = p.parse_args()
    write_task(a.out / "datasets" / "toy")
    if a.only_task:
        return
    tok = make_tokenizer()
    base = a.out / "model" / "tiny"
    base.mkdir(parents=True, exist_ok=True)
    tok.save(str(base / "tokenizer.json"), pretty=False)
    import torch
    model = pretrain(tok, a.steps, a.seed, a.device)
    model.to("cpu", torch.bfloat16).save_pretrained(base)
    (base / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
