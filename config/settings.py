"""Settings. Edit, save, run again. Every constant is checked before anything starts; --help lists the flags.

Relative paths are relative to the project folder. A copy of these values is kept with every run.
"""

# --- what users change ---
ENABLE_CROSS_ENCODER_RERANKING = True  # False: stage one alone. Both runs stay in data/runs for comparison.
CROSS_ENCODER_MODEL = "cross-encoder/ms-marco-MiniLM-L-12-v2"  # hub name, directory, or embedded:NAME
RERANKER_CANDIDATE_K = 100  # documents per question that the cross-encoder reads
RERANKER_BATCH_SIZE = 32  # pairs per forward pass; halved by itself where memory runs out
TOP_K = 5  # documents per question in the submission
DEVICE = "auto"  # auto, cpu, cuda, cuda:1, mps
CPU_THREADS = 0  # 0: one per core
CPU_ENGINE = "auto"  # auto: OpenVINO, and torch where that cannot run a model; or openvino, or torch

# --- models ---
# Stands in where the model above cannot read the corpus; None keeps that one and only warns.
CROSS_ENCODER_MODEL_MULTILINGUAL = "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1"
WHEN_MODEL_UNAVAILABLE = "embedded"  # embedded: use the model inside this project, loudly; fail: stop
ENCODERS = [  # bi-encoders: model, unit (document or chunk), weight; optional query_prefix, document_prefix
    {"model": "embedded:multilingual-e5-small", "unit": "document", "weight": 0.35},
    {"model": "embedded:multilingual-e5-small", "unit": "chunk", "weight": 0.35},
]
ENCODER_BATCH_SIZE = 16  # texts per forward pass of a bi-encoder
ENCODER_MAX_TOKENS = 512  # documents longer than this are cut for the document vector; chunks cover the rest

# --- chunks ---
CHUNK_TOKENS = 80  # longest chunk, in tokens of the first encoder
CHUNK_OVERLAP_TOKENS = 16  # tokens of the last chunk that the next one repeats, in whole sentences where they fit

# --- stage one ---
BM25_BACKEND = "bm25s"  # bm25s (fast) or rank_bm25 (same scores)
BM25_K1 = 1.2
BM25_B = 0.75
BM25_DOCUMENT_WEIGHT = 0.15  # weight of BM25 over documents in the fusion; 0 turns it off
BM25_CHUNK_WEIGHT = 0.15  # weight of BM25 over chunks in the fusion; 0 turns it off
FUSION_METHOD = "convex"  # convex (weighted sum of per-question z-scores) or rrf (weighted reciprocal ranks)
RRF_K = 60  # constant of rrf; ranks start at 1
SEARCH_DEPTH_DOCUMENTS = 200  # documents per question and document index
SEARCH_DEPTH_CHUNKS = 600  # chunks per question and chunk index

LATE_INTERACTION_WEIGHT = 0.15  # of token-by-token similarity (MaxSim) in stage one's order of the candidates; 0: off
LATE_INTERACTION_GB = 4.0  # most disk space for token vectors; beyond it, those of candidates are made in each search

# --- reranking ---
RERANKER_PRECISION = "fast"  # fast: 16 bits where the device multiplies them in hardware; exact: float32
RERANKER_BLEND_WEIGHT = 0.35  # 0: stage one decides, 1: the cross-encoder alone
RERANKER_PASSAGES_PER_DOCUMENT = 1  # best chunks of a document that are read; the highest score counts
RERANKER_PASSAGE_CHOICE = "best"  # best: the chunks nearest to the question; first: those the document begins with
RERANKER_MAX_LENGTH = 160  # tokens per pair; the passage is cut, never the question

# --- files ---
CORPUS_FILE = "websites_updated.csv"  # in <data folder>/raw
QUESTIONS_FILE = "questions_clean.csv"  # in <data folder>/raw
LABELS_FILE = "qrels.csv"  # in <data folder>/raw; optional
CORPUS_COLUMNS = {"id": "web_id", "title": "title", "text": "text"}
QUESTIONS_COLUMNS = {"id": "q_id", "query": "query"}
LABELS_COLUMNS = {"query_id": "q_id", "doc_id": "web_id"}
DATA_DIR = "data"
OUTPUT_FILE = "submit_cross_encoder.csv"
LOG_FILE = "search_cross_encoder.log"
