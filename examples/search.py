"""Step-level search: a reward model judges every line, good beginnings get more of the budget, and the tree shows where it went."""

from langchain_pareto import ChatPareto, Rebase, Report, WeightedVote

QUESTION = "Use 22 27 19 50 to make 65."


def main() -> None:
    """One puzzle by votes over whole solutions, and by REBASE over their lines, at the same budget."""
    llm = ChatPareto(scorer="process_reward", temperature=0.9, seed=7, budget="900 tokens")
    for strategy in (WeightedVote(n=8), Rebase(n=8)):
        answer = llm.invoke(QUESTION, strategy=strategy)
        report = answer.response_metadata["pareto"]
        print(f"{strategy.kind}: {report['answer']}, {report['spent']['tokens']} tokens")
    print(Report.of(answer, question=QUESTION))


if __name__ == "__main__":
    main()
