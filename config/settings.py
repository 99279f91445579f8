"""Settings. Edit, save, run again. Every constant is checked before anything starts; --help lists the flags.

Relative paths are relative to the project folder. A copy of these values is kept with every run.
"""

# --- what users change ---
SEARCH_PRESET = "embedded"  # embedded, winning or fast: config/presets.py. A constant edited below overrides it.
PRESET_OVERRIDES = {}  # {"RRF_K": 60}: constants that hold whatever the preset says, even at the value shipped here
ENABLE_CROSS_ENCODER_RERANKING = True  # False: stage one alone. Both runs stay in data/runs for comparison.
CROSS_ENCODER_MODEL = "cross-encoder/ms-marco-MiniLM-L-12-v2"  # hub name, directory, or embedded:NAME
RERANKER_CANDIDATE_K = 100  # documents per question that the cross-encoder reads
RERANKER_BATCH_SIZE = 32  # pairs per forward pass; halved by itself where memory runs out
TOP_K = 5  # documents per question in the submission
DEVICE = "auto"  # auto, cpu, cuda, cuda:1, mps
CPU_THREADS = 0  # 0: one per core that this process may use, in a container too
CPU_ENGINE = "auto"  # auto: OpenVINO, and torch where that cannot run a model; or openvino, or torch

# --- models ---
RERANKERS = []  # several: [{"model": NAME, "weight": 1.0}, ...] score together; empty: CROSS_ENCODER_MODEL alone
ALLOW_REMOTE_CODE = False  # True, or names of models: their own Python code may run on this machine
# Stands in where the model above cannot read the corpus; None keeps that one and only warns.
CROSS_ENCODER_MODEL_MULTILINGUAL = "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1"
WHEN_MODEL_UNAVAILABLE = "embedded"  # embedded: use the model inside this project, loudly; fail: stop
ENCODERS = [  # bi-encoders: model, unit (document or chunk), weight; optional query_prefix, document_prefix, pooling
    {"model": "embedded:multilingual-e5-small", "unit": "document", "weight": 0.35},
    {"model": "embedded:multilingual-e5-small", "unit": "chunk", "weight": 0.35},
]
ENCODER_BATCH_SIZE = 16  # texts per forward pass of a bi-encoder
ENCODER_MAX_TOKENS = 512  # documents longer than this are cut for the document vector; chunks cover the rest

# --- chunks ---
ENABLE_CHUNKS = True  # False: whole documents only, and the models read no more than their beginnings
CHUNK_UNIT = "tokens"  # tokens or characters: which of the sizes below count
CHUNK_TOKENS = 96  # longest chunk, in tokens of the first encoder
CHUNK_OVERLAP_TOKENS = 20  # tokens of a chunk that the next one repeats, in whole sentences where they fit
CHUNK_CHARACTERS = 250  # longest chunk, in characters
CHUNK_OVERLAP_CHARACTERS = 60
CHUNK_MIN_CHARACTERS = 50  # a shorter last chunk joins the one before it

# --- stage one ---
BM25_BACKEND = "bm25s"  # bm25s (fast) or rank_bm25 (same scores)
BM25_K1 = 1.2
BM25_B = 0.75
BM25_DOCUMENT_WEIGHT = 0.15  # weight of BM25 over documents in the fusion; 0 turns it off
BM25_CHUNK_WEIGHT = 0.15  # weight of BM25 over chunks in the fusion; 0 turns it off
FUSION_METHOD = "convex"  # convex (weighted sum of per-question z-scores) or rrf (weighted reciprocal ranks)
RRF_K = 60  # constant of rrf; ranks start at 1
SEARCH_DEPTH_DOCUMENTS = 200  # documents per question and encoder over documents
SEARCH_DEPTH_BM25 = 200  # documents per question of BM25 over documents
SEARCH_DEPTH_CHUNKS = 600  # chunks per question and chunk index

QUERY_VARIANTS = "auto"  # auto: <data folder>/processed/query_variants.parquet or .csv where it is there; a path; None
QUERY_VARIANT_WEIGHT = 0.7  # of each variant of a question, against 1 for the question itself

LATE_INTERACTION_WEIGHT = 0.15  # of token-by-token similarity (MaxSim) in stage one's order of the candidates; 0: off
LATE_INTERACTION_GB = 4.0  # most disk space for token vectors; beyond it, those of candidates are made in each search

# --- reranking ---
RERANKER_PRECISION = "auto"  # exact: float32; fast: 16 bits where the hardware has them; auto: fast on a GPU; or int8
RERANKER_BLEND_WEIGHT = 0.5  # 0: stage one decides, 1: the cross-encoder alone
RERANKER_PASSAGES_PER_DOCUMENT = 1  # best chunks of a document that are read; the highest score counts
RERANKER_PASSAGE_CHOICE = "best"  # best: the chunks nearest to the question; first: those the document begins with
RERANKER_MAX_LENGTH = 160  # tokens per pair; the passage is cut, never the question
RERANKER_QUERY = "original"  # or max or mean of the scores of the question and its variants, read one by one

# --- making query variants with a language model (07_make_variants.py --maker llm); the key: LLM_API_KEY ---
LLM_URL = "http://127.0.0.1:8000/v1"  # of a server that speaks OpenAI's chat completions (vLLM, llama.cpp, ...)
LLM_MODEL = None  # name of the model on that server
LLM_CONCURRENCY = 8  # questions under way at a time
LLM_TIMEOUT_SECONDS = 120  # for one answer

# --- files ---
CORPUS_FILE = "websites_updated.csv"  # in <data folder>/raw
QUESTIONS_FILE = "questions_clean.csv"  # in <data folder>/raw
LABELS_FILE = "qrels.csv"  # in <data folder>/raw; optional
CORPUS_COLUMNS = {"id": "web_id", "title": "title", "text": "text"}
QUESTIONS_COLUMNS = {"id": "q_id", "query": "query"}
LABELS_COLUMNS = {"query_id": "q_id", "doc_id": "web_id"}
DATA_DIR = "data"
OUTPUT_FILE = "submit_cross_encoder.csv"
