// Explains a picture with a model exported with --pixels: the file itself prepares, explains and draws.
// dotnet add package Microsoft.ML.OnnxRuntime; with Png.cs and the class Picture of Preprocess.cs beside it
using System;
using System.Linq;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

public static class PixelsProgram
{
    public static void Main(string[] args)
    {
        var picture = Png.Read(args[1]);
        var target = args.Length > 3 ? long.Parse(args[3]) : -1;
        using (var session = new InferenceSession(args[0]))
        using (var values = session.Run(new[]
        {
            NamedOnnxValue.CreateFromTensor(
                "pixels", new DenseTensor<byte>(picture.Pixels, new[] { picture.Height, picture.Width, 3 })),
            NamedOnnxValue.CreateFromTensor("target", new DenseTensor<long>(new[] { target }, new[] { 1 })),
        }, new[] { "predictions", "target_class", "overlay" }))
        {
            var outputs = values.ToDictionary(value => value.Name);
            var index = (int)outputs["target_class"].AsTensor<long>().First();
            var probability = outputs["predictions"].AsTensor<float>().ToArray()[index];
            Console.WriteLine(FormattableString.Invariant($"class {index}: {100 * probability:F1} %"));
            var drawn = new Picture(picture.Height, picture.Width, 3);
            outputs["overlay"].AsTensor<byte>().ToArray().CopyTo(drawn.Pixels, 0);
            Png.Write(args[2], drawn);
        }
    }
}
