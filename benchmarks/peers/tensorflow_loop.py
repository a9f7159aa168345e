"""TensorFlow: the loop of mnist_tensorflow.py, whose step is one tf.function; all threads."""

from mnist_tensorflow import Training, tf
from protocol import Experiment, Images, Labels, Prepared, Step, one_rate_at_a_time, serve


def prepare(experiment: Experiment) -> Prepared:
    """Build the variables and trace the step once; the rate is a variable of the graph."""
    lr_now = tf.Variable(0.0)
    training = Training(lr_now, seed=0)
    initial = [tf.identity(param) for param in training.params]

    def start(lr: float) -> Step:
        lr_now.assign(lr)
        for variable, value in zip(training.params, initial, strict=True):
            variable.assign(value)
        for slot in (*training.m, *training.v):
            slot.assign(tf.zeros_like(slot))
        count = 0

        def step(images: Images, labels: Labels) -> float:
            nonlocal count
            count += 1
            targets = tf.constant(labels.astype("int32"))
            return float(training.step(tf.constant(images), targets, tf.constant(count)))

        return step

    prepared = one_rate_at_a_time(start, experiment)
    return prepared._replace(facts={"tensorflow": tf.__version__, "threads": "TensorFlow's own"})


if __name__ == "__main__":
    serve(prepare)
