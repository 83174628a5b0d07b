// Explains a picture with an explainable model, in ONNX Runtime alone:
//   dotnet new console -n Explain && cd Explain && rm Program.cs      (then copy Explain.cs, Preprocess.cs and Png.cs here)
//   dotnet add package Microsoft.ML.OnnxRuntime
//   dotnet run -- model.onnx picture.png overlay.png [class index]
using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Runtime.Serialization.Json;
using System.Text;
using System.Xml;
using System.Xml.Linq;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

public sealed class Explanation
{
    public List<(int Index, string Label, double Probability)> Predictions;
    public float[] Heatmap; // of the picture's size, row by row, 0 to 1
    public float[] Visible; // likewise: 0 where a crop cut the picture off
}

public sealed class Explainer : IDisposable
{
    private readonly InferenceSession session;
    private readonly XElement manifest;

    public Explainer(string path)
    {
        session = new InferenceSession(path);
        if (!session.ModelMetadata.CustomMetadataMap.TryGetValue("onnxcam", out var text))
        {
            throw new ArgumentException("the model has no onnxcam manifest; make it explainable: onnxcam export");
        }
        var bytes = Encoding.UTF8.GetBytes(text);
        manifest = XElement.Load(JsonReaderWriterFactory.CreateJsonReader(bytes, XmlDictionaryReaderQuotas.Max));
        var task = manifest.Get("scores").Get("task");
        if (task != null)
        {
            throw new ArgumentException($"the model's task is {task.Text("task")}, and this program is of classifiers");
        }
        var names = new[] { manifest.Get("input").Text("name"), manifest.Get("target").Text("name") };
        var unknown = session.InputMetadata.Keys.Except(names).ToList();
        if (unknown.Count > 0)
        {
            throw new ArgumentException($"this program does not feed the model's input {string.Join(", ", unknown)}");
        }
    }

    /// <summary>The map of a class: an index, or -1 for the best.</summary>
    public Explanation Explain(Picture picture, long target = -1, string method = "gradcam")
    {
        var input = manifest.Get("input");
        if (input.Text("dtype") != "float32")
        {
            throw new ArgumentException($"the model takes {input.Text("dtype")}; this program feeds float32");
        }
        var layer = manifest.Get("layers").Elements().Last();
        var (data, shape, geometry) = Preprocess.Apply(picture, input.Get("preprocess"), input.Text("layout"));
        var feeds = new List<NamedOnnxValue>
        {
            NamedOnnxValue.CreateFromTensor(input.Text("name"), new DenseTensor<float>(data, shape)),
        };
        var name = manifest.Get("target").Text("name");
        if (session.InputMetadata.ContainsKey(name) || session.OverridableInitializerMetadata.ContainsKey(name))
        {
            feeds.Add(NamedOnnxValue.CreateFromTensor(name, new DenseTensor<long>(new[] { target }, new[] { 1 })));
        }
        var outputs = new[] { manifest.Get("scores").Text("name"), layer.Get("heatmaps").Text(method) };
        using (var values = session.Run(feeds, outputs))
        {
            var scores = values.First(value => value.Name == outputs[0]).AsTensor<float>().ToArray();
            var raw = values.First(value => value.Name == outputs[1]).AsTensor<float>();
            var size = (raw.Dimensions[1], raw.Dimensions[2]);
            var map = Maps.Resize(Maps.MinMax(raw.ToArray()), size, geometry.Input);
            var labels = manifest.Get("labels")?.Elements().Select(label => label.Value).ToList();
            return new Explanation
            {
                Heatmap = Maps.ToPicture(Maps.MinMax(map), geometry),
                Visible = Maps.ToPicture(Enumerable.Repeat(1f, map.Length).ToArray(), geometry),
                Predictions = Probabilities(scores, manifest.Get("scores").Text("kind"))
                    .Select((odds, i) => (Index: i, Label: labels?.ElementAtOrDefault(i) ?? $"{i}", Probability: odds))
                    .OrderByDescending(prediction => prediction.Probability)
                    .ToList(),
            };
        }
    }

    public void Dispose() => session.Dispose();

    private static double[] Probabilities(float[] scores, string kind)
    {
        if (kind == "binary_logit") return new[] { 1 - Sigmoid(scores[0]), Sigmoid(scores[0]) };
        if (kind == "multilabel") return scores.Select(Sigmoid).ToArray();
        var top = scores.Max();
        var odds = scores.Select(score => Math.Exp(score - top)).ToArray();
        var sum = odds.Sum();
        return odds.Select(value => value / sum).ToArray();
    }

    private static double Sigmoid(float score) => 1 / (1 + Math.Exp(-score));
}

public static class Json
{
    /// <summary>A value by its key. Keys that are not XML names, such as "gradcam++", stand in an attribute.</summary>
    public static XElement Get(this XElement item, string key) => item.Elements()
        .FirstOrDefault(child => ((string)child.Attribute("item") ?? child.Name.LocalName) == key
                                 && (string)child.Attribute("type") != "null");

    public static string Text(this XElement item, string key) =>
        item.Get(key)?.Value ?? throw new ArgumentException($"the manifest has no {key} under {item.Name.LocalName}");

    public static double Number(this XElement value) => double.Parse(value.Value, CultureInfo.InvariantCulture);

    /// <summary>A number, or a list of them.</summary>
    public static double[] Numbers(this XElement value) => value.HasElements
        ? value.Elements().Select(Number).ToArray()
        : new[] { value.Number() };
}

public static class Program
{
    public static void Main(string[] args)
    {
        var picture = Png.Read(args[1]);
        using (var explainer = new Explainer(args[0]))
        {
            var explanation = explainer.Explain(picture, args.Length > 3 ? long.Parse(args[3]) : -1);
            foreach (var best in explanation.Predictions.Take(5))
            {
                Console.WriteLine(FormattableString.Invariant($"{100 * best.Probability,5:F1} %  {best.Label}"));
            }
            Png.Write(args[2], Overlay(picture, explanation));
        }
    }

    // viridis, from 0 to 1: rising lightness, legible with and without colour vision
    private static readonly int[][] Colors =
    {
        new[] { 68, 1, 84 }, new[] { 59, 82, 139 }, new[] { 33, 145, 140 }, new[] { 94, 201, 98 }, new[] { 253, 231, 37 },
    };

    /// <summary>The map in colours over the picture, fading out towards 0; pale and striped what the model never saw.</summary>
    private static Picture Overlay(Picture picture, Explanation explanation)
    {
        var drawn = new Picture(picture.Height, picture.Width, 3);
        for (var i = 0; i < explanation.Heatmap.Length; i++)
        {
            var heat = explanation.Heatmap[i];
            var visible = explanation.Visible[i] > 0;
            var alpha = visible ? 0.6f * Math.Min(1, 2 * heat) : 0.7f;
            var low = Math.Min((int)(4 * heat), 3);
            var grey = (i % picture.Width + i / picture.Width) % 8 < 2 ? 90 : 160;
            for (var c = 0; c < 3; c++)
            {
                var color = visible ? Colors[low][c] + (Colors[low + 1][c] - Colors[low][c]) * (4 * heat - low) : grey;
                drawn.Pixels[3 * i + c] = (byte)Math.Round((1 - alpha) * picture.Pixels[3 * i + c] + alpha * color);
            }
        }
        return drawn;
    }
}
